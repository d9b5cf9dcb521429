#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable {

template class DeformableConv2DForwardCudaPlan<BFloat16>;
template class DeformableConv2DBackwardCudaPlan<BFloat16>;

}  // namespace tf_deformable
