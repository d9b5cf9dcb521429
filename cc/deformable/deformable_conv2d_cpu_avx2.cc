#define TF_DEFORMABLE_ISA avx2
#include "deformable/deformable_conv2d_cpu_kernels.inc"
