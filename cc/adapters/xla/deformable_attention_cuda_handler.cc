// CUDA handlers of multi-scale deformable attention and its gradient.

#include "adapters/common/deformable_attention_call.h"
#include "adapters/xla/cuda_context.h"
#include "adapters/xla/handlers.h"
#include "kernels/deformable_attention/cuda_plan.h"

namespace tf_deformable::deformable_attention {
namespace {

struct Cuda {
  CudaContext context;

  Status Prepare(const Geometry&, const std::vector<TensorView>&) { return Status(); }

  template <typename S>
  Status Run(const Geometry& geometry, const ForwardTensors<S>& tensors) {
    return RunPlan<cuda::ForwardPlan<S>>(context, geometry, tensors);
  }
  template <typename S>
  Status Run(const Geometry& geometry, const BackwardTensors<S>& tensors) {
    return RunPlan<cuda::BackwardPlan<S>>(context, geometry, tensors);
  }
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_attention_cuda, (HandleOnCuda<ForwardCall, Cuda>),
                              CudaBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(tf_deformable_attention_grad_cuda, (HandleOnCuda<GradientCall, Cuda>),
                              CudaBinding());

}  // namespace tf_deformable::deformable_attention
