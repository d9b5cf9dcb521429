// Registration of kernels that bears a second copy of this library in the process.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_REGISTRATION_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_REGISTRATION_H_

#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deformable {

// Tells whether the process has a kernel for the same operator, device and types already.
bool IsRegistered(const tensorflow::KernelDef& kernel);

// Registers a kernel, unless a copy of this library has done so, and tells whether it did.
// TensorFlow takes an operator that comes twice for the same one, but refuses to run one that has
// two kernels. The copies are those that serve exported models, and the package's own. Owns
// `kernel`, of KernelDefBuilder::Build().
template <typename Kernel>
bool RegisterKernel(const tensorflow::KernelDef* kernel) {
  if (IsRegistered(*kernel)) {
    delete kernel;
    return false;
  }
  tensorflow::kernel_factory::OpKernelRegistrar registrar(
      kernel, kernel->op(), [](tensorflow::OpKernelConstruction* context) -> tensorflow::OpKernel* {
        return new Kernel(context);
      });
  return true;
}

// Calls function(T()) for each type T of features. Returns true, as what initialises a variable.
template <typename Function>
bool ForEachFeaturesType(const Function& function) {
  function(Eigen::half());
  function(Eigen::bfloat16());
  function(float());
  function(double());
  return true;
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_REGISTRATION_H_
