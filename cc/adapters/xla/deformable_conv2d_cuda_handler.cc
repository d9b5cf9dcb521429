// CUDA handlers of the deformable convolution and its gradient.

#include "adapters/common/deformable_conv2d_call.h"
#include "adapters/xla/cuda_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d {

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_conv2d_cuda,
    (HandleOnCuda<ForwardCall, PlanDevice<CudaContext, cuda::ForwardPlan>>), CudaBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_conv2d_grad_cuda,
    (HandleOnCuda<GradientCall, PlanDevice<CudaContext, cuda::BackwardPlan>>), CudaBinding());

}  // namespace tf_deformable::deformable_conv2d
