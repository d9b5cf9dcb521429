// OpKernels of TFDeformable>RoiPool and its gradient, for a device that is a parameter.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_KERNEL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_KERNEL_H_

#include <string>
#include <type_traits>

#include "adapters/tensorflow/registration.h"
#include "adapters/tensorflow/roi_pool_arguments.h"
#include "adapters/tensorflow/status.h"
#include "adapters/tensorflow/tensors.h"
#include "kernels/roi_pool/tensors.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deformable {

// `Device` checks what is in its memory and computes: see roi_pool_kernel.cc and
// roi_pool_cuda_kernel.cc.
template <typename T, typename Tboxes, template <typename> class Device>
class DeformableRoIPoolOpBase : public tensorflow::OpKernel {
 public:
  using S = StorageType<T>;
  using A = ComputeType<S>;

  explicit DeformableRoIPoolOpBase(tensorflow::OpKernelConstruction* context)
      : tensorflow::OpKernel(context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, &attributes_));
    OP_REQUIRES_OK(context, context->GetAttr("num_offsets", &num_offsets_));
    OP_REQUIRES_OK(context, context->GetAttr("num_masks", &num_masks_));
    OP_REQUIRES(context, num_offsets_ <= 1 && num_masks_ <= 1,
                absl::InvalidArgumentError(
                    "deformable_roi_pool: num_offsets and num_masks must be 0 or "
                    "1, got " +
                    std::to_string(num_offsets_) + " and " + std::to_string(num_masks_)));
    for (int i = 3; i < grad_output_input(); ++i) {
      OP_REQUIRES_OK(context, CheckSamplingType<T>("deformable_roi_pool", context->input_type(i)));
    }
  }

 protected:
  int mask_input() const { return 3 + num_offsets_; }
  int grad_output_input() const { return 3 + num_offsets_ + num_masks_; }

  // Validates shapes, and indices where the device can.
  absl::Status ParseInputs(tensorflow::OpKernelContext* context, bool gradient,
                           roi_pool::Geometry* g) const {
    roi_pool::Arguments a = attributes_;
    a.inputs = ToShape(context->input(0).shape());
    a.boxes = ToShape(context->input(1).shape());
    a.box_indices = ToShape(context->input(2).shape());
    if (num_offsets_ > 0) a.offsets = ToShape(context->input(3).shape());
    if (num_masks_ > 0) a.mask = ToShape(context->input(mask_input()).shape());
    if (gradient) a.grad_output = ToShape(context->input(grad_output_input()).shape());
    TF_RETURN_IF_ERROR(ToAbslStatus(Parse(a, g)));
    return ToAbslStatus(Device<S>::CheckIndices(*g, Data<int32_t>(context->input(2))));
  }

  // Sets the inputs, the boxes converted to the type in which positions are computed.
  absl::Status SetInputs(tensorflow::OpKernelContext* context, tensorflow::Tensor* converted_boxes,
                         roi_pool::InputTensors<S>* tensors) const {
    const tensorflow::Tensor& boxes = context->input(1);
    if constexpr (std::is_same_v<Tboxes, A>) {
      tensors->boxes = Data<A>(boxes);
    } else {
      TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DataTypeToEnum<A>::value, boxes.shape(),
                                                converted_boxes));
      TF_RETURN_IF_ERROR(Device<S>::Convert(context, Data<Tboxes>(boxes), boxes.NumElements(),
                                            MutableData<A>(converted_boxes)));
      tensors->boxes = Data<A>(*converted_boxes);
    }
    tensors->inputs = Data<S>(context->input(0));
    tensors->box_indices = Data<int32_t>(context->input(2));
    tensors->offsets = SamplingInput(context, num_offsets_ > 0, 3);
    tensors->mask = SamplingInput(context, num_masks_ > 0, mask_input());
    return absl::OkStatus();
  }

  int num_offsets_, num_masks_;

 private:
  static SamplingTensor<const S> SamplingInput(tensorflow::OpKernelContext* context, bool present,
                                               int input) {
    if (!present) return nullptr;
    return SamplingData<S>(context->input(input));
  }

  roi_pool::Arguments attributes_;
};

template <typename T, typename Tboxes, template <typename> class Device>
class DeformableRoIPoolOp : public DeformableRoIPoolOpBase<T, Tboxes, Device> {
 public:
  using Base = DeformableRoIPoolOpBase<T, Tboxes, Device>;
  using Base::Base;
  using typename Base::S;

  void Compute(tensorflow::OpKernelContext* context) override {
    roi_pool::Geometry g;
    OP_REQUIRES_OK(context, this->ParseInputs(context, false, &g));
    tensorflow::Tensor* output;
    OP_REQUIRES_OK(
        context,
        context->allocate_output(
            0, tensorflow::TensorShape({g.boxes, g.pooled_height, g.pooled_width, g.depth}),
            &output));
    tensorflow::Tensor boxes;
    roi_pool::ForwardTensors<S> tensors;
    OP_REQUIRES_OK(context, this->SetInputs(context, &boxes, &tensors));
    tensors.output = MutableData<S>(output);
    Device<S>::Forward(context, g, tensors);
  }
};

template <typename T, typename Tboxes, template <typename> class Device>
class DeformableRoIPoolGradOp : public DeformableRoIPoolOpBase<T, Tboxes, Device> {
 public:
  using Base = DeformableRoIPoolOpBase<T, Tboxes, Device>;
  using Base::Base;
  using typename Base::S;

  void Compute(tensorflow::OpKernelContext* context) override {
    roi_pool::Geometry g;
    OP_REQUIRES_OK(context, this->ParseInputs(context, true, &g));
    // Outputs are the gradients of inputs, and of the inputs from number 3 on but the last.
    tensorflow::Tensor* grads[3] = {};
    for (int i = 0; i < context->num_outputs(); ++i) {
      const int input = i == 0 ? 0 : 2 + i;
      OP_REQUIRES_OK(context,
                     context->allocate_output(i, context->input(input).shape(), &grads[i]));
    }
    tensorflow::Tensor boxes;
    roi_pool::BackwardTensors<S> tensors;
    OP_REQUIRES_OK(context, this->SetInputs(context, &boxes, &tensors));
    tensors.grad_output = Data<S>(context->input(this->grad_output_input()));
    tensors.grad_inputs = MutableData<S>(grads[0]);
    if (this->num_offsets_ > 0) tensors.grad_offsets = MutableSamplingData<S>(grads[1]);
    if (this->num_masks_ > 0) {
      tensors.grad_mask = MutableSamplingData<S>(grads[1 + this->num_offsets_]);
    }
    Device<S>::Backward(context, g, tensors);
  }
};

template <typename T, typename Tboxes, template <typename> class Device>
void RegisterRoIPoolOfBoxes(const char* device) {
  const auto kernel = [&](const char* op) {
    return tensorflow::KernelDefBuilder(op)
        .Device(device)
        .TypeConstraint("T", tensorflow::DataTypeToEnum<T>::value)
        .TypeConstraint("Tboxes", tensorflow::DataTypeToEnum<Tboxes>::value)
        .Build();
  };
  // Those of version 0.1 are in models that it has exported.
  for (const char* op : {"TFDeformable>RoiPool", "TFDeformable>DeformableRoIPool"}) {
    RegisterKernel<DeformableRoIPoolOp<T, Tboxes, Device>>(kernel(op));
  }
  for (const char* op : {"TFDeformable>RoiPoolGrad", "TFDeformable>DeformableRoIPoolGrad"}) {
    RegisterKernel<DeformableRoIPoolGradOp<T, Tboxes, Device>>(kernel(op));
  }
}

// Registers both for an element type; device: "CPU" or "GPU" as TensorFlow names it.
template <typename T, template <typename> class Device>
bool RegisterRoIPool(const char* device) {
  RegisterRoIPoolOfBoxes<T, float, Device>(device);
  RegisterRoIPoolOfBoxes<T, double, Device>(device);
  return true;
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_KERNEL_H_
