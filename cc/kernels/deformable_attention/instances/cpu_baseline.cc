#define TF_DEFORMABLE_ISA baseline
#include "kernels/deformable_attention/cpu_kernels.inc"
