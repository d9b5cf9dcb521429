#include "kernels/deformable_attention/cuda_driver.h"

namespace tf_deformable::deformable_attention::cuda {

template class ForwardPlan<float>;
template class BackwardPlan<float>;

}  // namespace tf_deformable::deformable_attention::cuda
