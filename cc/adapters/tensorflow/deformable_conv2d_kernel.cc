// CPU OpKernels of TFDeformable>Conv2D and its gradient.

#include "adapters/tensorflow/deformable_conv2d_kernel.h"

#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_conv2d/cpu_plan.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cpu {
  static void Forward(tensorflow::OpKernelContext* context,
                      const deformable_conv2d::Geometry& geometry,
                      const deformable_conv2d::ForwardTensors<S>& tensors) {
    Run<deformable_conv2d::cpu::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Backward(tensorflow::OpKernelContext* context,
                       const deformable_conv2d::Geometry& geometry,
                       const deformable_conv2d::BackwardTensors<S>& tensors) {
    Run<deformable_conv2d::cpu::BackwardPlan<S>>(context, geometry, tensors);
  }

 private:
  // Runs a plan in a workspace that TensorFlow's allocator provides and accounts for.
  template <typename Plan, typename Tensors>
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const Tensors& tensors) {
    TfExecutor executor(context);
    const Plan plan(geometry, executor.num_workers());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    plan.Run(tensors, executor, workspace.data());
  }
};

[[maybe_unused]] const bool registered =
    RegisterDeformableConv2D<Eigen::half, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableConv2D<Eigen::bfloat16, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableConv2D<float, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterDeformableConv2D<double, Cpu>(tensorflow::DEVICE_CPU);

}  // namespace
}  // namespace tf_deformable
