// CUDA OpKernels of TFDeformable>Conv2D and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/deformable_conv2d_kernel.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable {
namespace {

[[maybe_unused]] const bool registered =
    RegisterDeformableConv2D<OnCuda<deformable_conv2d::cuda::ForwardPlan>::Device,
                             OnCuda<deformable_conv2d::cuda::BackwardPlan>::Device>(
        tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
