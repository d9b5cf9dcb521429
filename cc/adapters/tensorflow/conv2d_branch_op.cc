// Registration and shape functions of TFDeformable>Conv2DBranch and its gradient.

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/tensorflow/call.h"
#include "adapters/tensorflow/op_attributes.h"
#include "adapters/tensorflow/tensors.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tf_deformable {
namespace {

using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status GradientShape(InferenceContext* c) {
  deformable_conv2d::BranchGradientCall call;
  std::vector<TensorView> inputs;
  deformable_conv2d::Geometry g;
  TF_RETURN_IF_ERROR(ParseCall(c, &call, &inputs, &g));
  const std::vector<std::vector<int64_t>> inferred = {
      {g.batch, g.height, g.width, g.channels},
      {g.kernel_height, g.kernel_width, g.channels, g.filters}};
  for (int i = 0; i < 2; ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(c->Merge(c->input(i), ToHandle(c, Shape(inferred[i])), &shape));
    c->set_output(i, shape);
  }
  c->set_output(2, ToHandle(c, Shape({g.filters})));
  return absl::OkStatus();
}

REGISTER_OP("TFDeformable>Conv2DBranch")
    .Input("inputs: T")
    .Input("filters: Tsampling")
    .Input("bias: Tsampling")
    .Output("offsets: Tsampling")
    .Output("mask: num_masks * Tsampling")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tsampling: {float, double}")
    .Attr("num_masks: int >= 0 = 0")
    .Attr("largest_mask: float = 1.0")
    .TF_DEFORMABLE_WINDOW_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<deformable_conv2d::BranchForwardCall>)
    .Doc(R"doc(
The convolution that predicts the offsets and the mask of TFDeformable>Conv2D.

  z = the convolution of inputs with filters, plus bias
  offsets = the first G*kh*kw*2 channels of z
  mask = largest_mask * sigmoid(the others)

inputs: [N,H,W,C].
filters: [kh,kw,C,D], D = G*kh*kw*2, or G*kh*kw*3 with a mask.
bias: [D].
offsets: [N,Ho,Wo,G*kh*kw*2].
mask: none or one tensor [N,Ho,Wo,G*kh*kw].
Tsampling: float, and double beside a T of double.
strides: 2 positive integers (y, x).
dilations: 2 positive integers (y, x).
padding: SAME and VALID as in Conv2D; EXPLICIT reads explicit_paddings.
explicit_paddings: top, bottom, left, right.
)doc");

REGISTER_OP("TFDeformable>Conv2DBranchGrad")
    .Input("inputs: T")
    .Input("filters: Tsampling")
    .Input("mask: num_masks * Tsampling")
    .Input("grad_offsets: Tsampling")
    .Input("grad_mask: num_masks * Tsampling")
    .Output("grad_inputs: T")
    .Output("grad_filters: Tsampling")
    .Output("grad_bias: Tsampling")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tsampling: {float, double}")
    .Attr("num_masks: int >= 0 = 0")
    .Attr("largest_mask: float = 1.0")
    .TF_DEFORMABLE_WINDOW_ATTRIBUTES()
    .SetShapeFn(GradientShape)
    .Doc(R"doc(
Gradients of TFDeformable>Conv2DBranch for all that it reads.

inputs: as in the forward operator, like filters and the attributes.
mask: what the forward operator gave.
grad_offsets: [N,Ho,Wo,G*kh*kw*2], the gradient of the loss for the offsets.
grad_mask: [N,Ho,Wo,G*kh*kw] for each mask.
grad_inputs: [N,H,W,C].
grad_filters: [kh,kw,C,D].
grad_bias: [D].
)doc");

}  // namespace
}  // namespace tf_deformable
