// CUDA handlers of RoI pooling and its gradient.

#include "adapters/common/roi_pool_call.h"
#include "adapters/xla/cuda_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable::roi_pool {
namespace {

struct Cuda {
  CudaContext context;

  // Indices are on the device, where the kernels make NaN of what is wrong.
  Status Prepare(const Geometry&, const std::vector<TensorView>& inputs) {
    return CheckConvertedBoxes(inputs);
  }

  template <typename S>
  Status Run(const Geometry& geometry, const ForwardTensors<S>& tensors) {
    return context.RunPlan<cuda::ForwardPlan<S>>(geometry, tensors);
  }
  template <typename S>
  Status Run(const Geometry& geometry, const BackwardTensors<S>& tensors) {
    return context.RunPlan<cuda::BackwardPlan<S>>(geometry, tensors);
  }
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_roi_pool_cuda, (HandleOnCuda<ForwardCall, Cuda>),
                              CudaBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_roi_pool_grad_cuda, (HandleOnCuda<GradientCall, Cuda>),
                              CudaBinding());

}  // namespace tf_deformable::roi_pool
