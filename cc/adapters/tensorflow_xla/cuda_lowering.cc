// The lowerings for CUDA devices.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow_xla/lowerings.h"

namespace tf_deformable {
namespace {

// TensorFlow's settings hold as they were when the program was compiled.
void WriteSettings(AttributeWriter* writer) {
  const CudaOptions options = TensorFlowsCudaOptions();
  (void)(*writer)("tensor_float_32", &options.tensor_float_32);
  (void)(*writer)("deterministic", &options.deterministic);
}

constexpr Platform kCuda = {"XLA_GPU_JIT", "CUDA", false, WriteSettings};

[[maybe_unused]] const bool registered = [] {
  Handlers handlers;
  handlers.conv2d = tf_deformable_conv2d_cuda;
  handlers.conv2d_grad = tf_deformable_conv2d_grad_cuda;
  handlers.roi_pool = tf_deformable_roi_pool_cuda;
  handlers.roi_pool_grad = tf_deformable_roi_pool_grad_cuda;
  handlers.attention = tf_deformable_attention_cuda;
  handlers.attention_grad = tf_deformable_attention_grad_cuda;
  RegisterLowerings<kCuda>(handlers);
  return true;
}();

}  // namespace
}  // namespace tf_deformable
