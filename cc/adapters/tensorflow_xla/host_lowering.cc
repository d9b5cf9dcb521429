// The lowerings for the CPU.

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/tensorflow_xla/lowerings.h"

namespace tf_deformable {
namespace {

constexpr Platform kHost = {"XLA_CPU_JIT", "Host", true, [](AttributeWriter*) {}};

[[maybe_unused]] const bool registered = [] {
  Handlers handlers;
  handlers.conv2d = tf_deformable_conv2d_cpu;
  handlers.conv2d_grad = tf_deformable_conv2d_grad_cpu;
  handlers.roi_pool = tf_deformable_roi_pool_cpu;
  handlers.roi_pool_grad = tf_deformable_roi_pool_grad_cpu;
  handlers.attention = tf_deformable_attention_cpu;
  handlers.attention_grad = tf_deformable_attention_grad_cpu;
  RegisterLowerings<kHost>(handlers);
  // There are no CUDA kernels of the branch: on a GPU it is a convolution of TensorFlow's.
  RegisterLowering<deformable_conv2d::BranchForwardCall, kHost>(tf_deformable_conv2d_branch_cpu,
                                                                {"TFDeformable>Conv2DBranch"});
  RegisterLowering<deformable_conv2d::BranchGradientCall, kHost>(
      tf_deformable_conv2d_branch_grad_cpu, {"TFDeformable>Conv2DBranchGrad"});
  return true;
}();

}  // namespace
}  // namespace tf_deformable
