// CPU OpKernels of TFDeformable>Conv2DBranch and its gradient.

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/tensorflow/operator_kernel.h"
#include "adapters/tensorflow/registration.h"
#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"

namespace tf_deformable {
namespace {

using deformable_conv2d::cpu::BranchBackwardPlan;
using deformable_conv2d::cpu::BranchForwardPlan;

[[maybe_unused]] const bool registered = ForEachFeaturesType([](auto element) {
  using T = decltype(element);
  const auto kernel = [](const char* op) {
    return tensorflow::KernelDefBuilder(op)
        .Device(tensorflow::DEVICE_CPU)
        .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
        .Build();
  };
  RegisterKernel<
      OperatorKernel<deformable_conv2d::BranchForwardCall, T, OnCpu<BranchForwardPlan>::Device>>(
      kernel("TFDeformable>Conv2DBranch"));
  RegisterKernel<
      OperatorKernel<deformable_conv2d::BranchGradientCall, T, OnCpu<BranchBackwardPlan>::Device>>(
      kernel("TFDeformable>Conv2DBranchGrad"));
});

}  // namespace
}  // namespace tf_deformable
