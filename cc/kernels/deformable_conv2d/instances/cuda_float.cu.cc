#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable::deformable_conv2d::cuda {

template class ForwardPlan<float>;
template class BackwardPlan<float>;

}  // namespace tf_deformable::deformable_conv2d::cuda
