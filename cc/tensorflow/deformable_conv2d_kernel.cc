// CPU OpKernels of TFDeformable>DeformableConv2D and its gradient.

#include "deformable/deformable_conv2d_cpu.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/deformable_conv2d_arguments.h"
#include "tensorflow/tensors.h"
#include "tensorflow/tf_executor.h"

namespace tf_deformable {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

template <typename T>
class DeformableConv2DOpBase : public OpKernel {
 public:
  using S = StorageType<T>;

  explicit DeformableConv2DOpBase(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, &attributes_));
    OP_REQUIRES_OK(context, context->GetAttr("num_masks", &num_masks_));
    OP_REQUIRES(context, num_masks_ <= 1,
                absl::InvalidArgumentError("deformable_conv2d: num_masks must be 0 or 1, got " +
                                           std::to_string(num_masks_)));
  }

 protected:
  // The attributes and the shapes of inputs, filters, offsets and mask.
  DeformableConv2DArguments Arguments(OpKernelContext* context) const {
    DeformableConv2DArguments arguments = attributes_;
    arguments.inputs = ToShape(context->input(0).shape());
    arguments.filters = ToShape(context->input(1).shape());
    arguments.offsets = ToShape(context->input(2).shape());
    if (num_masks_ > 0) arguments.mask = ToShape(context->input(3).shape());
    return arguments;
  }

  const S* MaskData(OpKernelContext* context) const {
    return num_masks_ > 0 ? Data<S>(context->input(3)) : nullptr;
  }

  // Runs a plan in a workspace that TensorFlow's allocator provides and accounts for.
  template <typename Plan, typename Tensors>
  static void Run(OpKernelContext* context, const DeformableConv2DGeometry& geometry,
                  const Tensors& tensors) {
    TfExecutor executor(context);
    const Plan plan(geometry, executor.num_workers());
    Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    plan.Run(tensors, executor, workspace.data());
  }

  int num_masks_;

 private:
  DeformableConv2DArguments attributes_;
};

template <typename T>
class DeformableConv2DOp : public DeformableConv2DOpBase<T> {
 public:
  using Base = DeformableConv2DOpBase<T>;
  using typename Base::S;

  explicit DeformableConv2DOp(OpKernelConstruction* context) : Base(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_biases", &num_biases_));
    OP_REQUIRES(context, num_biases_ <= 1,
                absl::InvalidArgumentError("deformable_conv2d: num_biases must be 0 or 1, got " +
                                           std::to_string(num_biases_)));
  }

  void Compute(OpKernelContext* context) override {
    DeformableConv2DArguments arguments = this->Arguments(context);
    const int bias = 3 + this->num_masks_;
    if (num_biases_ > 0) arguments.bias = ToShape(context->input(bias).shape());
    DeformableConv2DGeometry g;
    OP_REQUIRES_OK(context, Parse(arguments, &g));

    Tensor* output;
    OP_REQUIRES_OK(
        context,
        context->allocate_output(
            0, TensorShape({g.batch, g.output_height, g.output_width, g.filters}), &output));
    if (output->NumElements() == 0) return;
    DeformableConv2DForward<S> tensors;
    tensors.inputs = Data<S>(context->input(0));
    tensors.filters = Data<S>(context->input(1));
    tensors.offsets = Data<S>(context->input(2));
    tensors.mask = this->MaskData(context);
    tensors.bias = num_biases_ > 0 ? Data<S>(context->input(bias)) : nullptr;
    tensors.output = MutableData<S>(output);
    this->template Run<DeformableConv2DForwardPlan<S>>(context, g, tensors);
  }

 private:
  int num_biases_;
};

template <typename T>
class DeformableConv2DGradOp : public DeformableConv2DOpBase<T> {
 public:
  using Base = DeformableConv2DOpBase<T>;
  using Base::Base;
  using typename Base::S;

  void Compute(OpKernelContext* context) override {
    DeformableConv2DArguments arguments = this->Arguments(context);
    const Tensor& grad_output = context->input(3 + this->num_masks_);
    arguments.grad_output = ToShape(grad_output.shape());
    DeformableConv2DGeometry g;
    OP_REQUIRES_OK(context, Parse(arguments, &g));

    // Outputs are the gradients of the inputs of the same number.
    Tensor* grads[4] = {};
    for (int i = 0; i < context->num_outputs(); ++i) {
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(i).shape(), &grads[i]));
    }
    DeformableConv2DBackward<S> tensors;
    tensors.inputs = Data<S>(context->input(0));
    tensors.filters = Data<S>(context->input(1));
    tensors.offsets = Data<S>(context->input(2));
    tensors.mask = this->MaskData(context);
    tensors.grad_output = Data<S>(grad_output);
    tensors.grad_inputs = MutableData<S>(grads[0]);
    tensors.grad_filters = MutableData<S>(grads[1]);
    tensors.grad_offsets = MutableData<S>(grads[2]);
    tensors.grad_mask = grads[3] != nullptr ? MutableData<S>(grads[3]) : nullptr;
    this->template Run<DeformableConv2DBackwardPlan<S>>(context, g, tensors);
  }
};

#define REGISTER(T)                                                                                \
  REGISTER_KERNEL_BUILDER(                                                                         \
      Name("TFDeformable>DeformableConv2D").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
      DeformableConv2DOp<T>);                                                                      \
  REGISTER_KERNEL_BUILDER(Name("TFDeformable>DeformableConv2DGrad")                                \
                              .Device(tensorflow::DEVICE_CPU)                                      \
                              .TypeConstraint<T>("T"),                                             \
                          DeformableConv2DGradOp<T>);
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
REGISTER(float)
REGISTER(double)
#undef REGISTER

}  // namespace
}  // namespace tf_deformable
