// CPU OpKernels of TFDeformable>MultiScaleDeformableAttention and its gradient.

#include "adapters/tensorflow/deformable_attention_kernel.h"

#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_attention/cpu_plan.h"

namespace tf_deformable {
namespace {

[[maybe_unused]] const bool registered =
    RegisterDeformableAttention<OnCpu<deformable_attention::cpu::ForwardPlan>::Device,
                                OnCpu<deformable_attention::cpu::BackwardPlan>::Device>(
        tensorflow::DEVICE_CPU);

}  // namespace
}  // namespace tf_deformable
