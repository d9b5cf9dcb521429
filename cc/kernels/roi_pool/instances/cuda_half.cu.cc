#include "kernels/roi_pool/cuda_driver.h"

namespace tf_deformable::roi_pool::cuda {

template class ForwardPlan<Half>;
template class BackwardPlan<Half>;

}  // namespace tf_deformable::roi_pool::cuda
