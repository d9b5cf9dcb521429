// Registration of the OpKernels of TFDeformable>RoiPool and its gradient, for any device.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_KERNEL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_KERNEL_H_

#include <vector>

#include "adapters/common/roi_pool_call.h"
#include "adapters/tensorflow/operator_kernel.h"
#include "adapters/tensorflow/registration.h"

namespace tf_deformable {

// Replaces boxes by ones of the type in which positions beside features of type S are computed,
// where they are not. convert(from, size, to): a device's, for float and double.
template <typename S, typename Convert>
absl::Status ConvertBoxes(tensorflow::OpKernelContext* context, std::vector<TensorView>* inputs,
                          tensorflow::Tensor* converted, const Convert& convert) {
  using A = ComputeType<S>;
  TensorView& boxes = (*inputs)[roi_pool::ForwardCall::kBoxes];
  if (boxes.type == ElementTypeOf<A>::value) return absl::OkStatus();
  TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DataTypeToEnum<A>::value,
                                            tensorflow::TensorShape(boxes.shape.dims), converted));
  using Other = std::conditional_t<std::is_same_v<A, double>, float, double>;
  A* const to = static_cast<A*>(converted->data());
  TF_RETURN_IF_ERROR(convert(boxes.Data<const Other>(), converted->NumElements(), to));
  boxes.data = to;
  boxes.type = ElementTypeOf<A>::value;
  return absl::OkStatus();
}

// Registers both; device: "CPU" or "GPU" as TensorFlow names it.
template <template <typename> class Device>
bool RegisterRoIPool(const char* device) {
  return ForEachFeaturesType([device](auto element) {
    using T = decltype(element);
    for (tensorflow::DataType boxes : {tensorflow::DT_FLOAT, tensorflow::DT_DOUBLE}) {
      const auto kernel = [device, boxes](const char* op) {
        return tensorflow::KernelDefBuilder(op)
            .Device(device)
            .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
            .TypeConstraint("Tboxes", boxes)
            .Build();
      };
      // Those of version 0.1 are in models that it has exported.
      for (const char* op : {"TFDeformable>RoiPool", "TFDeformable>DeformableRoIPool"}) {
        RegisterKernel<OperatorKernel<roi_pool::ForwardCall, T, Device>>(kernel(op));
      }
      for (const char* op : {"TFDeformable>RoiPoolGrad", "TFDeformable>DeformableRoIPoolGrad"}) {
        RegisterKernel<OperatorKernel<roi_pool::GradientCall, T, Device>>(kernel(op));
      }
    }
  });
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_KERNEL_H_
