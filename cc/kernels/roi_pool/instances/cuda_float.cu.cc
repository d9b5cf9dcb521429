#include "kernels/roi_pool/cuda_driver.h"

namespace tf_deformable::roi_pool::cuda {

template class ForwardPlan<float>;
template class BackwardPlan<float>;

}  // namespace tf_deformable::roi_pool::cuda
