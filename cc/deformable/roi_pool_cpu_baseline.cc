#define TF_DEFORMABLE_ISA baseline
#include "deformable/roi_pool_cpu_kernels.inc"
