// CUDA OpKernels of TFDeformable>MultiScaleDeformableAttention and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/deformable_attention_kernel.h"
#include "kernels/deformable_attention/cuda_plan.h"

namespace tf_deformable {
namespace {

[[maybe_unused]] const bool registered =
    RegisterDeformableAttention<OnCuda<deformable_attention::cuda::ForwardPlan>::Device,
                                OnCuda<deformable_attention::cuda::BackwardPlan>::Device>(
        tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
