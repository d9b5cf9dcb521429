// The lowerings for the CPU.

#include "adapters/tensorflow_xla/lowerings.h"

namespace tf_deformable {
namespace {

constexpr Platform kHost = {"XLA_CPU_JIT", "Host", true, [](AttributeWriter*) {}};

[[maybe_unused]] const bool registered =
    RegisterLowerings<kHost>({tf_deformable_conv2d_cpu, tf_deformable_conv2d_grad_cpu,
                              tf_deformable_roi_pool_cpu, tf_deformable_roi_pool_grad_cpu,
                              tf_deformable_attention_cpu, tf_deformable_attention_grad_cpu});

}  // namespace
}  // namespace tf_deformable
