// The OpKernel of every operator: a call, computed on a device.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_OPERATOR_KERNEL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_OPERATOR_KERNEL_H_

#include <vector>

#include "adapters/tensorflow/call.h"
#include "adapters/tensorflow/status.h"
#include "adapters/tensorflow/tensors.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deformable {

// Of a device that has nothing to check, for Device below.
struct PreparesNothing {
  template <typename Geometry>
  static absl::Status Prepare(tensorflow::OpKernelContext*, const Geometry&,
                              std::vector<TensorView>*, tensorflow::Tensor*) {
    return absl::OkStatus();
  }
};

// T: the type of features. Device<StorageType<T>> has
//   absl::Status Prepare(context, geometry, inputs, temporary): checks what is in its memory, and
//     may replace an input by one that it puts into the tensor `temporary`;
//   void Run(context, geometry, tensors).
template <typename Call, typename T, template <typename> class Device>
class OperatorKernel : public tensorflow::OpKernel {
 public:
  using S = StorageType<T>;

  explicit OperatorKernel(tensorflow::OpKernelConstruction* context)
      : tensorflow::OpKernel(context) {
    OP_REQUIRES_OK(context, ReadCall(context, &call_));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    std::vector<TensorView> inputs;
    for (int i = 0; i < context->num_inputs(); ++i) inputs.push_back(View(context->input(i)));
    typename Call::Geometry geometry;
    OP_REQUIRES_OK(context, ToAbslStatus(call_.Parse(inputs, &geometry)));
    tensorflow::Tensor temporary;
    OP_REQUIRES_OK(context, Device<S>::Prepare(context, geometry, &inputs, &temporary));

    std::vector<TensorView> outputs = call_.Outputs(inputs, geometry);
    for (size_t i = 0; i < outputs.size(); ++i) {
      tensorflow::TensorShape shape;
      OP_REQUIRES_OK(context,
                     tensorflow::TensorShape::BuildTensorShape(outputs[i].shape.dims, &shape));
      tensorflow::Tensor* output;
      OP_REQUIRES_OK(context, context->allocate_output(i, shape, &output));
      outputs[i].data = output->data();
    }
    Device<S>::Run(context, geometry, call_.template Tensors<S>(inputs, outputs));
  }

 private:
  Call call_;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_OPERATOR_KERNEL_H_
