// CPU OpKernels of TFDeformable>MultiScaleDeformableAttention and its gradient.

#include "adapters/tensorflow/deformable_attention_kernel.h"

#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_attention/cpu_plan.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cpu {
  static absl::Status Prepare(tensorflow::OpKernelContext*, const deformable_attention::Geometry&,
                              std::vector<TensorView>*, tensorflow::Tensor*) {
    return absl::OkStatus();
  }
  static void Run(tensorflow::OpKernelContext* context,
                  const deformable_attention::Geometry& geometry,
                  const deformable_attention::ForwardTensors<S>& tensors) {
    RunPlan<deformable_attention::cpu::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Run(tensorflow::OpKernelContext* context,
                  const deformable_attention::Geometry& geometry,
                  const deformable_attention::BackwardTensors<S>& tensors) {
    RunPlan<deformable_attention::cpu::BackwardPlan<S>>(context, geometry, tensors);
  }
};

[[maybe_unused]] const bool registered =
    RegisterDeformableAttention<Eigen::half, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableAttention<Eigen::bfloat16, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableAttention<float, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableAttention<double, Cpu>(tensorflow::DEVICE_CPU);

}  // namespace
}  // namespace tf_deformable
