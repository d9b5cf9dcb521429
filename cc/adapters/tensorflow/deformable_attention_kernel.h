// Registration of the OpKernels of TFDeformable>MultiScaleDeformableAttention and its gradient, for
// any device.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_ATTENTION_KERNEL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_ATTENTION_KERNEL_H_

#include "adapters/common/deformable_attention_call.h"
#include "adapters/tensorflow/operator_kernel.h"
#include "adapters/tensorflow/registration.h"

namespace tf_deformable {

// Registers both for an element type; device: "CPU" or "GPU" as TensorFlow names it.
template <typename T, template <typename> class Device>
bool RegisterDeformableAttention(const char* device) {
  const auto kernel = [&](const char* op) {
    return tensorflow::KernelDefBuilder(op)
        .Device(device)
        .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
        .HostMemory("spatial_shapes")  // kernels are cut by it
        .Build();
  };
  RegisterKernel<OperatorKernel<deformable_attention::ForwardCall, T, Device>>(
      kernel("TFDeformable>MultiScaleDeformableAttention"));
  RegisterKernel<OperatorKernel<deformable_attention::GradientCall, T, Device>>(
      kernel("TFDeformable>MultiScaleDeformableAttentionGrad"));
  return true;
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_ATTENTION_KERNEL_H_
