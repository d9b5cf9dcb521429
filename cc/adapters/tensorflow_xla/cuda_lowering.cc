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

[[maybe_unused]] const bool registered =
    RegisterLowerings<kCuda>({tf_deformable_conv2d_cuda, tf_deformable_conv2d_grad_cuda,
                              tf_deformable_roi_pool_cuda, tf_deformable_roi_pool_grad_cuda,
                              tf_deformable_attention_cuda, tf_deformable_attention_grad_cuda});

}  // namespace
}  // namespace tf_deformable
