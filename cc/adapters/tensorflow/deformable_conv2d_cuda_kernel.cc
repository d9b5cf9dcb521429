// CUDA OpKernels of TFDeformable>Conv2D and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/deformable_conv2d_kernel.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cuda {
  static absl::Status Prepare(tensorflow::OpKernelContext*, const deformable_conv2d::Geometry&,
                              std::vector<TensorView>*, tensorflow::Tensor*) {
    return absl::OkStatus();
  }
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const deformable_conv2d::ForwardTensors<S>& tensors) {
    RunCudaPlan<deformable_conv2d::cuda::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const deformable_conv2d::BackwardTensors<S>& tensors) {
    RunCudaPlan<deformable_conv2d::cuda::BackwardPlan<S>>(context, geometry, tensors);
  }
};

[[maybe_unused]] const bool registered =
    RegisterDeformableConv2D<Eigen::half, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableConv2D<Eigen::bfloat16, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableConv2D<float, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableConv2D<double, Cuda>(tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
