#define TF_DEFORMABLE_ISA avx512
#include "deformable/deformable_conv2d_cpu_kernels.inc"
