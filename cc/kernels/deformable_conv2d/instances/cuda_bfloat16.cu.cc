#include "kernels/deformable_conv2d/cuda_driver.h"

namespace tf_deformable::deformable_conv2d::cuda {

template class ForwardPlan<BFloat16>;
template class BackwardPlan<BFloat16>;

}  // namespace tf_deformable::deformable_conv2d::cuda
