// The lowerings for the CPU.

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/tensorflow_xla/lowerings.h"

namespace tf_deformable {
namespace {

constexpr Platform kHost = {"XLA_CPU_JIT", "Host", true, [](AttributeWriter*) {}};

[[maybe_unused]] const bool registered =
    RegisterLowerings<kHost>({tf_deformable_conv2d_cpu, tf_deformable_conv2d_grad_cpu,
                              tf_deformable_roi_pool_cpu, tf_deformable_roi_pool_grad_cpu,
                              tf_deformable_attention_cpu, tf_deformable_attention_grad_cpu});

// There are no CUDA kernels of the branch: on a GPU it is a convolution of TensorFlow's.
[[maybe_unused]] const bool registered_branch = [] {
  RegisterLowering<deformable_conv2d::BranchForwardCall, kHost>(tf_deformable_conv2d_branch_cpu,
                                                                {"TFDeformable>Conv2DBranch"});
  RegisterLowering<deformable_conv2d::BranchGradientCall, kHost>(
      tf_deformable_conv2d_branch_grad_cpu, {"TFDeformable>Conv2DBranchGrad"});
  return true;
}();

}  // namespace
}  // namespace tf_deformable
