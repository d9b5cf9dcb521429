#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable {

template class DeformableConv2DForwardCudaPlan<double>;
template class DeformableConv2DBackwardCudaPlan<double>;

}  // namespace tf_deformable
