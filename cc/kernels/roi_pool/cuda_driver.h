// Everything that a plan of a CUDA device is made of. Included once per element type: nvcc compiles
// these in parallel.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DRIVER_H_

#include "kernels/roi_pool/cuda_backward.h"
#include "kernels/roi_pool/cuda_forward.h"

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DRIVER_H_
