// CPU handlers of the deformable convolution and its gradient.

#include "adapters/common/deformable_conv2d_call.h"
#include "adapters/xla/cpu_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"

namespace tf_deformable::deformable_conv2d {
namespace {

struct Cpu {
  CpuContext context;

  Status Prepare(const Geometry&, const std::vector<TensorView>&) { return Status(); }

  template <typename S>
  Status Run(const Geometry& geometry, const ForwardTensors<S>& tensors) {
    return RunPlan<cpu::ForwardPlan<S>>(context, geometry, tensors);
  }
  template <typename S>
  Status Run(const Geometry& geometry, const BackwardTensors<S>& tensors) {
    return RunPlan<cpu::BackwardPlan<S>>(context, geometry, tensors);
  }
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_conv2d_cpu, (HandleOnCpu<ForwardCall, Cpu>),
                              CpuBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_conv2d_grad_cpu, (HandleOnCpu<GradientCall, Cpu>),
                              CpuBinding());

}  // namespace tf_deformable::deformable_conv2d
