#define TF_DEFORMABLE_ISA avx2
#include "kernels/deformable_conv2d/cpu_kernels.inc"
