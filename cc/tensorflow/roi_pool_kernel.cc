// CPU OpKernels of TFDeformable>DeformableRoIPool and its gradient.

#include <algorithm>

#include "deformable/roi_pool_cpu.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/roi_pool_arguments.h"
#include "tensorflow/tensors.h"
#include "tensorflow/tf_executor.h"

namespace tf_deformable {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

template <typename T, typename Tboxes>
class DeformableRoIPoolOpBase : public OpKernel {
 public:
  using S = StorageType<T>;
  using A = ComputeType<S>;

  explicit DeformableRoIPoolOpBase(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, ReadAttributes(context, &attributes_));
    OP_REQUIRES_OK(context, context->GetAttr("num_offsets", &num_offsets_));
    OP_REQUIRES_OK(context, context->GetAttr("num_masks", &num_masks_));
    OP_REQUIRES(context, num_offsets_ <= 1 && num_masks_ <= 1,
                absl::InvalidArgumentError(
                    "deformable_roi_pool: num_offsets and num_masks must be 0 or "
                    "1, got " +
                    std::to_string(num_offsets_) + " and " + std::to_string(num_masks_)));
  }

 protected:
  int mask_input() const { return 3 + num_offsets_; }
  int grad_output_input() const { return 3 + num_offsets_ + num_masks_; }

  // Validates shapes and indices.
  absl::Status ParseInputs(OpKernelContext* context, bool gradient, RoIPoolGeometry* g) const {
    RoIPoolArguments a = attributes_;
    a.inputs = ToShape(context->input(0).shape());
    a.boxes = ToShape(context->input(1).shape());
    a.box_indices = ToShape(context->input(2).shape());
    if (num_offsets_ > 0) a.offsets = ToShape(context->input(3).shape());
    if (num_masks_ > 0) a.mask = ToShape(context->input(mask_input()).shape());
    if (gradient) a.grad_output = ToShape(context->input(grad_output_input()).shape());
    std::string error = ParseRoIPool(a, g);
    if (error.empty()) error = CheckBoxIndices(*g, Data<int32_t>(context->input(2)));
    return error.empty() ? absl::OkStatus() : absl::InvalidArgumentError(error);
  }

  // The inputs, the boxes converted to the type in which positions are computed.
  absl::Status Tensors(OpKernelContext* context, Tensor* converted_boxes,
                       RoIPoolTensors<S>* tensors) const {
    const Tensor& boxes = context->input(1);
    if constexpr (std::is_same_v<Tboxes, A>) {
      tensors->boxes = Data<A>(boxes);
    } else {
      TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DataTypeToEnum<A>::value, boxes.shape(),
                                                converted_boxes));
      const Tboxes* from = Data<Tboxes>(boxes);
      std::copy(from, from + boxes.NumElements(), MutableData<A>(converted_boxes));
      tensors->boxes = Data<A>(*converted_boxes);
    }
    tensors->inputs = Data<S>(context->input(0));
    tensors->box_indices = Data<int32_t>(context->input(2));
    tensors->offsets = num_offsets_ > 0 ? Data<S>(context->input(3)) : nullptr;
    tensors->mask = num_masks_ > 0 ? Data<S>(context->input(mask_input())) : nullptr;
    return absl::OkStatus();
  }

  int num_offsets_, num_masks_;

 private:
  RoIPoolArguments attributes_;
};

template <typename T, typename Tboxes>
class DeformableRoIPoolOp : public DeformableRoIPoolOpBase<T, Tboxes> {
 public:
  using Base = DeformableRoIPoolOpBase<T, Tboxes>;
  using Base::Base;
  using typename Base::S;

  void Compute(OpKernelContext* context) override {
    RoIPoolGeometry g;
    OP_REQUIRES_OK(context, this->ParseInputs(context, false, &g));
    Tensor* output;
    OP_REQUIRES_OK(
        context, context->allocate_output(
                     0, TensorShape({g.boxes, g.pooled_height, g.pooled_width, g.depth}), &output));
    Tensor boxes, workspace;
    RoIPoolTensors<S> tensors;
    OP_REQUIRES_OK(context, this->Tensors(context, &boxes, &tensors));
    TfExecutor executor(context);
    const RoIPoolForwardPlan<S> plan(g, executor.num_workers());
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    plan.Run(tensors, MutableData<S>(output), executor, workspace.data());
  }
};

template <typename T, typename Tboxes>
class DeformableRoIPoolGradOp : public DeformableRoIPoolOpBase<T, Tboxes> {
 public:
  using Base = DeformableRoIPoolOpBase<T, Tboxes>;
  using Base::Base;
  using typename Base::S;

  void Compute(OpKernelContext* context) override {
    RoIPoolGeometry g;
    OP_REQUIRES_OK(context, this->ParseInputs(context, true, &g));
    // Outputs are the gradients of inputs, and of the inputs from number 3 on but the last.
    Tensor* grads[3] = {};
    for (int i = 0; i < context->num_outputs(); ++i) {
      const int input = i == 0 ? 0 : 2 + i;
      OP_REQUIRES_OK(context,
                     context->allocate_output(i, context->input(input).shape(), &grads[i]));
    }
    Tensor boxes, workspace;
    RoIPoolTensors<S> tensors;
    OP_REQUIRES_OK(context, this->Tensors(context, &boxes, &tensors));
    TfExecutor executor(context);
    const RoIPoolBackwardPlan<S> plan(g, executor.num_workers());
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    const auto gradient = [&](bool present, int output) {
      return present ? MutableData<S>(grads[output]) : nullptr;
    };
    plan.Run(tensors, Data<S>(context->input(this->grad_output_input())), MutableData<S>(grads[0]),
             gradient(this->num_offsets_ > 0, 1),
             gradient(this->num_masks_ > 0, 1 + this->num_offsets_), executor, workspace.data());
  }
};

#define REGISTER_BOXES(T, Tboxes)                                    \
  REGISTER_KERNEL_BUILDER(Name("TFDeformable>DeformableRoIPool")     \
                              .Device(tensorflow::DEVICE_CPU)        \
                              .TypeConstraint<T>("T")                \
                              .TypeConstraint<Tboxes>("Tboxes"),     \
                          DeformableRoIPoolOp<T, Tboxes>);           \
  REGISTER_KERNEL_BUILDER(Name("TFDeformable>DeformableRoIPoolGrad") \
                              .Device(tensorflow::DEVICE_CPU)        \
                              .TypeConstraint<T>("T")                \
                              .TypeConstraint<Tboxes>("Tboxes"),     \
                          DeformableRoIPoolGradOp<T, Tboxes>);
#define REGISTER(T)        \
  REGISTER_BOXES(T, float) \
  REGISTER_BOXES(T, double)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
REGISTER(float)
REGISTER(double)
#undef REGISTER
#undef REGISTER_BOXES

}  // namespace
}  // namespace tf_deformable
