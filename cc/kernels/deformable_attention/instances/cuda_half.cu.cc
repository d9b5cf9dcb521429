#include "kernels/deformable_attention/cuda_driver.h"

namespace tf_deformable::deformable_attention::cuda {

template class ForwardPlan<Half>;
template class BackwardPlan<Half>;

}  // namespace tf_deformable::deformable_attention::cuda
