#define TF_DEFORMABLE_ISA avx2
#include "kernels/deformable_attention/cpu_kernels.inc"
