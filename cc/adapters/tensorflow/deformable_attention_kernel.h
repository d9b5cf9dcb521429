// Registration of the OpKernels of TFDeformable>MultiScaleDeformableAttention and its gradient, for
// any device.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_ATTENTION_KERNEL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_ATTENTION_KERNEL_H_

#include "adapters/common/deformable_attention_call.h"
#include "adapters/tensorflow/operator_kernel.h"
#include "adapters/tensorflow/registration.h"

namespace tf_deformable {

// As RegisterDeformableConv2D.
template <template <typename> class Forward, template <typename> class Backward>
bool RegisterDeformableAttention(const char* device) {
  return ForEachFeaturesType([device](auto element) {
    using T = decltype(element);
    const auto kernel = [device](const char* op) {
      return tensorflow::KernelDefBuilder(op)
          .Device(device)
          .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
          .HostMemory("spatial_shapes")  // kernels are cut by it
          .Build();
    };
    RegisterKernel<OperatorKernel<deformable_attention::ForwardCall, T, Forward>>(
        kernel("TFDeformable>MultiScaleDeformableAttention"));
    RegisterKernel<OperatorKernel<deformable_attention::GradientCall, T, Backward>>(
        kernel("TFDeformable>MultiScaleDeformableAttentionGrad"));
  });
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_ATTENTION_KERNEL_H_
