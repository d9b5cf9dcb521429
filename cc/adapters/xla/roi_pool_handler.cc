// CPU handlers of RoI pooling and its gradient.

#include "adapters/common/roi_pool_call.h"
#include "adapters/xla/cpu_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/roi_pool/cpu_plan.h"

namespace tf_deformable::roi_pool {
namespace {

struct Cpu {
  CpuContext context;

  Status Prepare(const Geometry& geometry, const std::vector<TensorView>& inputs) {
    const Status status = CheckConvertedBoxes(inputs);
    if (!status.ok()) return status;
    return CheckBoxIndices(geometry, inputs[ForwardCall::kBoxIndices].Data<const int32_t>());
  }

  template <typename S>
  Status Run(const Geometry& geometry, const ForwardTensors<S>& tensors) {
    return context.RunPlan<cpu::ForwardPlan<S>>(geometry, tensors);
  }
  template <typename S>
  Status Run(const Geometry& geometry, const BackwardTensors<S>& tensors) {
    return context.RunPlan<cpu::BackwardPlan<S>>(geometry, tensors);
  }
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_roi_pool_cpu, (HandleOnCpu<ForwardCall, Cpu>),
                              CpuBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_roi_pool_grad_cpu, (HandleOnCpu<GradientCall, Cpu>),
                              CpuBinding());

}  // namespace tf_deformable::roi_pool
