// OpKernels of TFDeformable>Conv2D and its gradient, for a device that is a parameter.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_KERNEL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_KERNEL_H_

#include <string>

#include "adapters/tensorflow/deformable_conv2d_arguments.h"
#include "adapters/tensorflow/registration.h"
#include "adapters/tensorflow/status.h"
#include "adapters/tensorflow/tensors.h"
#include "kernels/deformable_conv2d/tensors.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deformable {

// `Device` computes: see deformable_conv2d_kernel.cc and deformable_conv2d_cuda_kernel.cc.
template <typename T>
class DeformableConv2DOpBase : public tensorflow::OpKernel {
 public:
  using S = StorageType<T>;

  explicit DeformableConv2DOpBase(tensorflow::OpKernelConstruction* context)
      : tensorflow::OpKernel(context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, &attributes_));
    OP_REQUIRES_OK(context, context->GetAttr("num_masks", &num_masks_));
    OP_REQUIRES(context, num_masks_ <= 1,
                absl::InvalidArgumentError("deformable_conv2d: num_masks must be 0 or 1, got " +
                                           std::to_string(num_masks_)));
    for (int i = 2; i < 3 + num_masks_; ++i) {
      OP_REQUIRES_OK(context, CheckSamplingType<T>("deformable_conv2d", context->input_type(i)));
    }
  }

 protected:
  // The attributes and the shapes of inputs, filters, offsets and mask.
  deformable_conv2d::Arguments Arguments(tensorflow::OpKernelContext* context) const {
    deformable_conv2d::Arguments arguments = attributes_;
    arguments.inputs = ToShape(context->input(0).shape());
    arguments.filters = ToShape(context->input(1).shape());
    arguments.offsets = ToShape(context->input(2).shape());
    if (num_masks_ > 0) arguments.mask = ToShape(context->input(3).shape());
    return arguments;
  }

  SamplingTensor<const S> MaskData(tensorflow::OpKernelContext* context) const {
    if (num_masks_ == 0) return nullptr;
    return SamplingData<S>(context->input(3));
  }

  int num_masks_;

 private:
  deformable_conv2d::Arguments attributes_;
};

template <typename T, template <typename> class Device>
class DeformableConv2DOp : public DeformableConv2DOpBase<T> {
 public:
  using Base = DeformableConv2DOpBase<T>;
  using typename Base::S;

  explicit DeformableConv2DOp(tensorflow::OpKernelConstruction* context) : Base(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_biases", &num_biases_));
    OP_REQUIRES(context, num_biases_ <= 1,
                absl::InvalidArgumentError("deformable_conv2d: num_biases must be 0 or 1, got " +
                                           std::to_string(num_biases_)));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    deformable_conv2d::Arguments arguments = this->Arguments(context);
    const int bias = 3 + this->num_masks_;
    if (num_biases_ > 0) arguments.bias = ToShape(context->input(bias).shape());
    deformable_conv2d::Geometry g;
    OP_REQUIRES_OK(context, ToAbslStatus(Parse(arguments, &g)));

    tensorflow::Tensor* output;
    OP_REQUIRES_OK(
        context,
        context->allocate_output(
            0, tensorflow::TensorShape({g.batch, g.output_height, g.output_width, g.filters}),
            &output));
    if (output->NumElements() == 0) return;
    deformable_conv2d::ForwardTensors<S> tensors;
    tensors.inputs = Data<S>(context->input(0));
    tensors.filters = Data<S>(context->input(1));
    tensors.offsets = SamplingData<S>(context->input(2));
    tensors.mask = this->MaskData(context);
    tensors.bias = num_biases_ > 0 ? Data<S>(context->input(bias)) : nullptr;
    tensors.output = MutableData<S>(output);
    Device<S>::Forward(context, g, tensors);
  }

 private:
  int num_biases_;
};

template <typename T, template <typename> class Device>
class DeformableConv2DGradOp : public DeformableConv2DOpBase<T> {
 public:
  using Base = DeformableConv2DOpBase<T>;
  using Base::Base;
  using typename Base::S;

  void Compute(tensorflow::OpKernelContext* context) override {
    deformable_conv2d::Arguments arguments = this->Arguments(context);
    const tensorflow::Tensor& grad_output = context->input(3 + this->num_masks_);
    arguments.grad_output = ToShape(grad_output.shape());
    deformable_conv2d::Geometry g;
    OP_REQUIRES_OK(context, ToAbslStatus(Parse(arguments, &g)));

    // Outputs are the gradients of the inputs of the same number.
    tensorflow::Tensor* grads[4] = {};
    for (int i = 0; i < context->num_outputs(); ++i) {
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(i).shape(), &grads[i]));
    }
    deformable_conv2d::BackwardTensors<S> tensors;
    tensors.inputs = Data<S>(context->input(0));
    tensors.filters = Data<S>(context->input(1));
    tensors.offsets = SamplingData<S>(context->input(2));
    tensors.mask = this->MaskData(context);
    tensors.grad_output = Data<S>(grad_output);
    tensors.grad_inputs = MutableData<S>(grads[0]);
    tensors.grad_filters = MutableData<S>(grads[1]);
    tensors.grad_offsets = MutableSamplingData<S>(grads[2]);
    if (grads[3] != nullptr) tensors.grad_mask = MutableSamplingData<S>(grads[3]);
    Device<S>::Backward(context, g, tensors);
  }
};

// Registers both for an element type; device: "CPU" or "GPU" as TensorFlow names it.
template <typename T, template <typename> class Device>
bool RegisterDeformableConv2D(const char* device) {
  const auto kernel = [&](const char* op) {
    return tensorflow::KernelDefBuilder(op)
        .Device(device)
        .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
        .Build();
  };
  // Those of version 0.1 are in models that it has exported.
  for (const char* op : {"TFDeformable>Conv2D", "TFDeformable>DeformableConv2D"}) {
    RegisterKernel<DeformableConv2DOp<T, Device>>(kernel(op));
  }
  for (const char* op : {"TFDeformable>Conv2DGrad", "TFDeformable>DeformableConv2DGrad"}) {
    RegisterKernel<DeformableConv2DGradOp<T, Device>>(kernel(op));
  }
  return true;
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_KERNEL_H_
