#define TF_DEFORMABLE_ISA avx2
#include "kernels/roi_pool/cpu_kernels.inc"
