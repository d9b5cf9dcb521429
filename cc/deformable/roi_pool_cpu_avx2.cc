#define TF_DEFORMABLE_ISA avx2
#include "deformable/roi_pool_cpu_kernels.inc"
