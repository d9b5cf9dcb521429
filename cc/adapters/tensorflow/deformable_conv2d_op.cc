// Registration and shape functions of TFDeformable>Conv2D and its gradient.

#include "adapters/common/deformable_conv2d_call.h"
#include "adapters/tensorflow/call.h"
#include "adapters/tensorflow/op_attributes.h"
#include "adapters/tensorflow/tensors.h"
#include "kernels/base/validation.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tf_deformable {
namespace {

using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status GradientShape(InferenceContext* c) {
  deformable_conv2d::GradientCall call;
  std::vector<TensorView> inputs;
  deformable_conv2d::Geometry g;
  TF_RETURN_IF_ERROR(ParseCall(c, &call, &inputs, &g));
  const int64_t taps = Product(g.kernel_height, g.kernel_width);
  const int64_t samples = Product(g.offset_groups, taps);
  const std::vector<std::vector<int64_t>> inferred = {
      {g.batch, g.height, g.width, g.channels},
      {g.kernel_height, g.kernel_width, inputs[1].shape.dim(2), g.filters},
      {g.batch, g.output_height, g.output_width, Product(samples, 2)},
      {g.batch, g.output_height, g.output_width, samples}};
  for (int i = 0; i < c->num_outputs(); ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(c->Merge(c->input(i), ToHandle(c, Shape(inferred[i])), &shape));
    c->set_output(i, shape);
  }
  return absl::OkStatus();
}

REGISTER_OP("TFDeformable>Conv2D")
    .Input("inputs: T")
    .Input("filters: T")
    .Input("offsets: Tsampling")
    .Input("mask: num_masks * Tsampling")
    .Input("bias: num_biases * T")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tsampling: {half, bfloat16, float, double}")
    .Attr("num_masks: int >= 0 = 0")
    .Attr("num_biases: int >= 0 = 0")
    .TF_DEFORMABLE_WINDOW_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<deformable_conv2d::ForwardCall>)
    .Doc(R"doc(
Deformable convolution (Dai et al. 2017, equations 2 to 4; with a mask, Zhu et al. 2019, equation 1).

  output[n,p,f] = bias[f] + sum_k sum_c filters[k,c,f] * mask[n,p,g,k] * x(n,q)[c]
  q = p * strides - padding + k * dilations + offsets[n,p,g,k],  g = c / (C/G)

where x(n,q) is the bilinear interpolation of inputs[n] at q = (y,x) in pixels, zero outside the map.
Positions, weights and sums are computed in float32 (float64 for double) whatever T is. Tsampling is
T, or that type: 16 bits round offsets of some ten pixels to quarters of a pixel.

inputs: [N,H,W,C].
filters: [kh,kw,C/groups,F], the groups follow from the shapes.
offsets: [N,Ho,Wo,G*kh*kw*2] in pixels, last axis (offset group, tap row, tap column, (dy,dx)).
mask: none or one tensor [N,Ho,Wo,G*kh*kw].
bias: none or one tensor [F].
output: [N,Ho,Wo,F].
strides: 2 positive integers (y, x).
dilations: 2 positive integers (y, x).
padding: SAME and VALID as in Conv2D; EXPLICIT reads explicit_paddings.
explicit_paddings: top, bottom, left, right.
)doc");

REGISTER_OP("TFDeformable>Conv2DGrad")
    .Input("inputs: T")
    .Input("filters: T")
    .Input("offsets: Tsampling")
    .Input("mask: num_masks * Tsampling")
    .Input("grad_output: T")
    .Output("grad_inputs: T")
    .Output("grad_filters: T")
    .Output("grad_offsets: Tsampling")
    .Output("grad_mask: num_masks * Tsampling")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tsampling: {half, bfloat16, float, double}")
    .Attr("num_masks: int >= 0 = 0")
    .TF_DEFORMABLE_WINDOW_ATTRIBUTES()
    .SetShapeFn(GradientShape)
    .Doc(R"doc(
Gradients of TFDeformable>Conv2D for everything it reads but the bias.

At an integer coordinate the derivative for the offset is that of the cell [floor(q), floor(q)+1].

inputs: as in the forward operator, like filters, offsets, mask and the attributes.
grad_output: [N,Ho,Wo,F], the gradient of the loss for the output.
grad_inputs: [N,H,W,C].
grad_filters: [kh,kw,C/groups,F].
grad_offsets: [N,Ho,Wo,G*kh*kw*2].
grad_mask: [N,Ho,Wo,G*kh*kw] for each mask.
)doc");

// The operators of version 0.1, in which offsets and mask have the type of inputs: models that it
// has exported load and run. Nothing writes them into graphs any more.

REGISTER_OP("TFDeformable>DeformableConv2D")
    .Input("inputs: T")
    .Input("filters: T")
    .Input("offsets: T")
    .Input("mask: num_masks * T")
    .Input("bias: num_biases * T")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("num_masks: int >= 0 = 0")
    .Attr("num_biases: int >= 0 = 0")
    .TF_DEFORMABLE_WINDOW_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<deformable_conv2d::ForwardCall>)
    .Doc("TFDeformable>Conv2D of version 0.1.");

REGISTER_OP("TFDeformable>DeformableConv2DGrad")
    .Input("inputs: T")
    .Input("filters: T")
    .Input("offsets: T")
    .Input("mask: num_masks * T")
    .Input("grad_output: T")
    .Output("grad_inputs: T")
    .Output("grad_filters: T")
    .Output("grad_offsets: T")
    .Output("grad_mask: num_masks * T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("num_masks: int >= 0 = 0")
    .TF_DEFORMABLE_WINDOW_ATTRIBUTES()
    .SetShapeFn(GradientShape)
    .Doc("TFDeformable>Conv2DGrad of version 0.1.");

}  // namespace
}  // namespace tf_deformable
