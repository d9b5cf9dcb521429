// CPU OpKernels of TFDeformable>Conv2D and its gradient.

#include "adapters/tensorflow/deformable_conv2d_kernel.h"

#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cpu {
  static absl::Status Prepare(tensorflow::OpKernelContext*, const deformable_conv2d::Geometry&,
                              std::vector<TensorView>*, tensorflow::Tensor*) {
    return absl::OkStatus();
  }
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const deformable_conv2d::ForwardTensors<S>& tensors) {
    RunPlan<deformable_conv2d::cpu::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const deformable_conv2d::BackwardTensors<S>& tensors) {
    RunPlan<deformable_conv2d::cpu::BackwardPlan<S>>(context, geometry, tensors);
  }
};

[[maybe_unused]] const bool registered =
    RegisterDeformableConv2D<Eigen::half, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableConv2D<Eigen::bfloat16, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableConv2D<float, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableConv2D<double, Cpu>(tensorflow::DEVICE_CPU);

}  // namespace
}  // namespace tf_deformable
