#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable {

template class DeformableConv2DForwardCudaPlan<float>;
template class DeformableConv2DBackwardCudaPlan<float>;

}  // namespace tf_deformable
