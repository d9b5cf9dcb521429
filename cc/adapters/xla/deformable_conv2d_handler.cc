// CPU handlers of the deformable convolution and its gradient.

#include "adapters/common/deformable_conv2d_call.h"
#include "adapters/xla/cpu_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"

namespace tf_deformable::deformable_conv2d {

XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_conv2d_cpu,
                              (HandleOnCpu<ForwardCall, PlanDevice<CpuContext, cpu::ForwardPlan>>),
                              CpuBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_conv2d_grad_cpu,
    (HandleOnCpu<GradientCall, PlanDevice<CpuContext, cpu::BackwardPlan>>), CpuBinding());

}  // namespace tf_deformable::deformable_conv2d
