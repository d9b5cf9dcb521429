#define TF_DEFORMABLE_ISA avx512
#include "deformable/roi_pool_cpu_kernels.inc"
