#define TF_DEFORMABLE_ISA avx512
#include "kernels/roi_pool/cpu_kernels.inc"
