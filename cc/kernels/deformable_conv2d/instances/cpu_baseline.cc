#define TF_DEFORMABLE_ISA baseline
#include "kernels/deformable_conv2d/cpu_kernels.inc"
