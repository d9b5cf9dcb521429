#include "kernels/roi_pool/cuda_driver.h"

namespace tf_deformable::roi_pool::cuda {

template class ForwardPlan<BFloat16>;
template class BackwardPlan<BFloat16>;

}  // namespace tf_deformable::roi_pool::cuda
