// CPU handlers of the branch that predicts offsets and mask, and of its gradient.

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/xla/cpu_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"

namespace tf_deformable::deformable_conv2d {

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_conv2d_branch_cpu,
    (HandleOnCpu<BranchForwardCall, PlanDevice<CpuContext, cpu::BranchForwardPlan>>), CpuBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tf_deformable_conv2d_branch_grad_cpu,
    (HandleOnCpu<BranchGradientCall, PlanDevice<CpuContext, cpu::BranchBackwardPlan>>),
    CpuBinding());

}  // namespace tf_deformable::deformable_conv2d
