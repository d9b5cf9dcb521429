#define TF_DEFORMABLE_ISA baseline
#include "deformable/deformable_conv2d_cpu_kernels.inc"
