// Registration of the OpKernels of TFDeformable>Conv2D and its gradient, for any device.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_KERNEL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_KERNEL_H_

#include "adapters/common/deformable_conv2d_call.h"
#include "adapters/tensorflow/operator_kernel.h"
#include "adapters/tensorflow/registration.h"

namespace tf_deformable {

// Registers both; Forward, Backward: the device for each; device: "CPU" or "GPU" as TensorFlow
// names it.
template <template <typename> class Forward, template <typename> class Backward>
bool RegisterDeformableConv2D(const char* device) {
  return ForEachFeaturesType([device](auto element) {
    using T = decltype(element);
    const auto kernel = [device](const char* op) {
      return tensorflow::KernelDefBuilder(op)
          .Device(device)
          .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
          .Build();
    };
    // Those of version 0.1 are in models that it has exported.
    for (const char* op : {"TFDeformable>Conv2D", "TFDeformable>DeformableConv2D"}) {
      RegisterKernel<OperatorKernel<deformable_conv2d::ForwardCall, T, Forward>>(kernel(op));
    }
    for (const char* op : {"TFDeformable>Conv2DGrad", "TFDeformable>DeformableConv2DGrad"}) {
      RegisterKernel<OperatorKernel<deformable_conv2d::GradientCall, T, Backward>>(kernel(op));
    }
  });
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_KERNEL_H_
