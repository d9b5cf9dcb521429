#include "kernels/roi_pool/cuda_driver.h"

namespace tf_deformable::roi_pool::cuda {

template class ForwardPlan<double>;
template class BackwardPlan<double>;

}  // namespace tf_deformable::roi_pool::cuda
