#define TF_DEFORMABLE_ISA avx512
#include "kernels/deformable_conv2d/cpu_kernels.inc"
