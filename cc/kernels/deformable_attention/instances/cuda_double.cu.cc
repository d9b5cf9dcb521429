#include "kernels/deformable_attention/cuda_driver.h"

namespace tf_deformable::deformable_attention::cuda {

template class ForwardPlan<double>;
template class BackwardPlan<double>;

}  // namespace tf_deformable::deformable_attention::cuda
