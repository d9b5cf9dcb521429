// CUDA OpKernels of TFDeformable>MultiScaleDeformableAttention and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/deformable_attention_kernel.h"
#include "kernels/deformable_attention/cuda_plan.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cuda {
  static absl::Status Prepare(tensorflow::OpKernelContext*, const deformable_attention::Geometry&,
                              std::vector<TensorView>*, tensorflow::Tensor*) {
    return absl::OkStatus();
  }
  static void Run(tensorflow::OpKernelContext* context,
                  const deformable_attention::Geometry& geometry,
                  const deformable_attention::ForwardTensors<S>& tensors) {
    RunCudaPlan<deformable_attention::cuda::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Run(tensorflow::OpKernelContext* context,
                  const deformable_attention::Geometry& geometry,
                  const deformable_attention::BackwardTensors<S>& tensors) {
    RunCudaPlan<deformable_attention::cuda::BackwardPlan<S>>(context, geometry, tensors);
  }
};

[[maybe_unused]] const bool registered =
    RegisterDeformableAttention<Eigen::half, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableAttention<Eigen::bfloat16, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableAttention<float, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterDeformableAttention<double, Cuda>(tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
