#include "kernels/deformable_attention/cuda_driver.h"

namespace tf_deformable::deformable_attention::cuda {

template class ForwardPlan<BFloat16>;
template class BackwardPlan<BFloat16>;

}  // namespace tf_deformable::deformable_attention::cuda
