// Registration and shape functions of TFDeformable>MultiScaleDeformableAttention and its gradient.

#include "adapters/common/deformable_attention_call.h"
#include "adapters/tensorflow/call.h"
#include "adapters/tensorflow/op_attributes.h"
#include "adapters/tensorflow/tensors.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tf_deformable {
namespace {

REGISTER_OP("TFDeformable>MultiScaleDeformableAttention")
    .Input("value: T")
    .Input("spatial_shapes: int32")
    .Input("sampling_locations: Tsampling")
    .Input("attention_weights: Tsampling")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .TF_DEFORMABLE_ATTENTION_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<deformable_attention::ForwardCall>)
    .Doc(R"doc(
Multi-scale deformable attention (Zhu et al. 2021, equation 3), without its projections.

  output[n,q,h] = sum_l sum_p attention_weights[n,q,h,l,p] * x_l(sampling_locations[n,q,h,l,p])

where x_l is the bilinear interpolation of the map of level l of value[n,:,h], zero outside the map.
Positions, weights and sums are computed in float32 (float64 for double) whatever T is. Tsampling is
T, or that type.

value: [N,S,heads,D], the pixels of the levels one after the other, each row by row.
spatial_shapes: [levels,2], height and width of each level; S is the sum of their products.
sampling_locations: [N,Q,heads,levels,points,2], (y,x).
attention_weights: [N,Q,heads,levels,points].
output: [N,Q,heads*D].
coordinates: normalized: 0 and 1 are the outer edges of the map, a location is at the pixel
  location * (height,width) - 0.5; pixels: 0 is the centre of the first pixel.
num_points: the points of each level, P in all: sampling_locations are [N,Q,heads,P,2] then, and
  attention_weights [N,Q,heads,P]. Empty: all levels have as many.
)doc");

REGISTER_OP("TFDeformable>MultiScaleDeformableAttentionGrad")
    .Input("value: T")
    .Input("spatial_shapes: int32")
    .Input("sampling_locations: Tsampling")
    .Input("attention_weights: Tsampling")
    .Input("grad_output: T")
    .Output("grad_value: T")
    .Output("grad_sampling_locations: Tsampling")
    .Output("grad_attention_weights: Tsampling")
    .Attr("T: {half, bfloat16, float, double}")
    .TF_DEFORMABLE_ATTENTION_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<deformable_attention::GradientCall>)
    .Doc(R"doc(
Gradients of TFDeformable>MultiScaleDeformableAttention.

At the centre of a pixel the derivative for the location is that towards the next one.

value: as in the forward operator, like spatial_shapes, sampling_locations, attention_weights and
  the attributes.
grad_output: [N,Q,heads*D], the gradient of the loss for the output.
grad_value: [N,S,heads,D].
grad_sampling_locations: as sampling_locations.
grad_attention_weights: as attention_weights.
)doc");

}  // namespace
}  // namespace tf_deformable
