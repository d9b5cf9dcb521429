// CUDA OpKernels of TFDeformable>RoiPool and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/roi_pool_kernel.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable {
namespace {

using tensorflow::OpKernelContext;

template <typename S>
struct Cuda {
  // Indices are on the device, where the kernels make NaN of what is wrong.
  static absl::Status Prepare(OpKernelContext* context, const roi_pool::Geometry&,
                              std::vector<TensorView>* inputs, tensorflow::Tensor* temporary) {
    return ConvertBoxes<S>(context, inputs, temporary, [&](auto* from, int64_t size, auto* to) {
      return ToAbslStatus(roi_pool::cuda::ConvertBoxes(from, size, to, CudaStream(context)));
    });
  }
  static void Run(OpKernelContext* context, const roi_pool::Geometry& geometry,
                  const roi_pool::ForwardTensors<S>& tensors) {
    RunCudaPlan<roi_pool::cuda::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Run(OpKernelContext* context, const roi_pool::Geometry& geometry,
                  const roi_pool::BackwardTensors<S>& tensors) {
    RunCudaPlan<roi_pool::cuda::BackwardPlan<S>>(context, geometry, tensors);
  }
};

[[maybe_unused]] const bool registered = RegisterRoIPool<Cuda>(tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
