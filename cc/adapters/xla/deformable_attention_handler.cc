// CPU handlers of multi-scale deformable attention and its gradient.

#include "adapters/common/deformable_attention_call.h"
#include "adapters/xla/cpu_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_attention/cpu_plan.h"

namespace tf_deformable::deformable_attention {

XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_attention_cpu,
                              (HandleOnCpu<ForwardCall, PlanDevice<CpuContext, cpu::ForwardPlan>>),
                              CpuBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_attention_grad_cpu,
    (HandleOnCpu<GradientCall, PlanDevice<CpuContext, cpu::BackwardPlan>>), CpuBinding());

}  // namespace tf_deformable::deformable_attention
