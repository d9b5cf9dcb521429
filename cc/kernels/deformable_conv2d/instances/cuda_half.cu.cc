#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable {

template class DeformableConv2DForwardCudaPlan<Half>;
template class DeformableConv2DBackwardCudaPlan<Half>;

}  // namespace tf_deformable
