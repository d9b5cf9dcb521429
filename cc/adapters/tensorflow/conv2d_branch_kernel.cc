// CPU OpKernels of TFDeformable>Conv2DBranch and its gradient.

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/tensorflow/operator_kernel.h"
#include "adapters/tensorflow/registration.h"
#include "adapters/tensorflow/tf_executor.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cpu {
  static absl::Status Prepare(tensorflow::OpKernelContext*, const deformable_conv2d::Geometry&,
                              std::vector<TensorView>*, tensorflow::Tensor*) {
    return absl::OkStatus();
  }
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const deformable_conv2d::BranchTensors<S>& tensors) {
    RunPlan<deformable_conv2d::cpu::BranchForwardPlan<S>>(context, geometry, tensors);
  }
  static void Run(tensorflow::OpKernelContext* context, const deformable_conv2d::Geometry& geometry,
                  const deformable_conv2d::BranchGradientTensors<S>& tensors) {
    RunPlan<deformable_conv2d::cpu::BranchBackwardPlan<S>>(context, geometry, tensors);
  }
};

template <typename T>
bool Register() {
  const auto kernel = [](const char* op) {
    return tensorflow::KernelDefBuilder(op)
        .Device(tensorflow::DEVICE_CPU)
        .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
        .Build();
  };
  RegisterKernel<OperatorKernel<deformable_conv2d::BranchForwardCall, T, Cpu>>(
      kernel("TFDeformable>Conv2DBranch"));
  RegisterKernel<OperatorKernel<deformable_conv2d::BranchGradientCall, T, Cpu>>(
      kernel("TFDeformable>Conv2DBranchGrad"));
  return true;
}

[[maybe_unused]] const bool registered = Register<Eigen::half>() && Register<Eigen::bfloat16>() &&
                                         Register<float>() && Register<double>();

}  // namespace
}  // namespace tf_deformable
