#define TF_DEFORMABLE_ISA baseline
#include "kernels/roi_pool/cpu_kernels.inc"
