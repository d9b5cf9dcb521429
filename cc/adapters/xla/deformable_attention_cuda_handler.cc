// CUDA handlers of multi-scale deformable attention and its gradient.

#include "adapters/common/deformable_attention_call.h"
#include "adapters/xla/cuda_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_attention/cuda_plan.h"

namespace tf_deformable::deformable_attention {

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_attention_cuda,
    (HandleOnCuda<ForwardCall, PlanDevice<CudaContext, cuda::ForwardPlan>>), CudaBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_attention_grad_cuda,
    (HandleOnCuda<GradientCall, PlanDevice<CudaContext, cuda::BackwardPlan>>), CudaBinding());

}  // namespace tf_deformable::deformable_attention
