#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable::deformable_conv2d::cuda {

template class ForwardPlan<Half>;
template class BackwardPlan<Half>;

}  // namespace tf_deformable::deformable_conv2d::cuda
