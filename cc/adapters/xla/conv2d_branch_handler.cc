// CPU handlers of the branch that predicts offsets and mask, and of its gradient.

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/xla/cpu_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"

namespace tf_deformable::deformable_conv2d {
namespace {

struct Cpu {
  CpuContext context;

  Status Prepare(const Geometry&, const std::vector<TensorView>&) { return Status(); }

  template <typename S>
  Status Run(const Geometry& geometry, const BranchTensors<S>& tensors) {
    return RunPlan<cpu::BranchForwardPlan<S>>(context, geometry, tensors);
  }
  template <typename S>
  Status Run(const Geometry& geometry, const BranchGradientTensors<S>& tensors) {
    return RunPlan<cpu::BranchBackwardPlan<S>>(context, geometry, tensors);
  }
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_conv2d_branch_cpu,
                              (HandleOnCpu<BranchForwardCall, Cpu>), CpuBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_conv2d_branch_grad_cpu,
                              (HandleOnCpu<BranchGradientCall, Cpu>), CpuBinding());

}  // namespace tf_deformable::deformable_conv2d
