#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable::deformable_conv2d::cuda {

template class ForwardPlan<double>;
template class BackwardPlan<double>;

}  // namespace tf_deformable::deformable_conv2d::cuda
