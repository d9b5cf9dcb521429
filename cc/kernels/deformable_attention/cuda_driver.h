// Everything that a plan of a CUDA device is made of. Included once per element type: nvcc compiles
// these in parallel.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_DRIVER_H_

#include "kernels/deformable_attention/cuda_backward.h"
#include "kernels/deformable_attention/cuda_forward.h"

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_DRIVER_H_
