// CUDA OpKernels of TFDeformable>Conv2D and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/deformable_conv2d_kernel.h"
#include "adapters/tensorflow/status.h"
#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cuda {
  static void Forward(tensorflow::OpKernelContext* context,
                      const deformable_conv2d::Geometry& geometry,
                      const deformable_conv2d::ForwardTensors<S>& tensors) {
    Run<deformable_conv2d::cuda::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Backward(tensorflow::OpKernelContext* context,
                       const deformable_conv2d::Geometry& geometry,
                       const deformable_conv2d::BackwardTensors<S>& tensors) {
    Run<deformable_conv2d::cuda::BackwardPlan<S>>(context, geometry, tensors);
  }

 private:
  template <typename Plan, typename Tensors>
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const Tensors& tensors) {
    const Plan plan(geometry, TensorFlowsCudaOptions());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    OP_REQUIRES_OK(context, ToAbslStatus(plan.Run(tensors, workspace.data(), CudaStream(context))));
  }
};

[[maybe_unused]] const bool registered =
    RegisterDeformableConv2D<Eigen::half, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableConv2D<Eigen::bfloat16, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableConv2D<float, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableConv2D<double, Cuda>(tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
