// CPU OpKernels of TFDeformable>Conv2D and its gradient.

#include "adapters/tensorflow/deformable_conv2d_kernel.h"

#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"

namespace tf_deformable {
namespace {

[[maybe_unused]] const bool registered =
    RegisterDeformableConv2D<OnCpu<deformable_conv2d::cpu::ForwardPlan>::Device,
                             OnCpu<deformable_conv2d::cpu::BackwardPlan>::Device>(
        tensorflow::DEVICE_CPU);

}  // namespace
}  // namespace tf_deformable
