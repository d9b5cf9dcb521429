#define TF_DEFORMABLE_ISA avx512
#include "kernels/deformable_attention/cpu_kernels.inc"
