// Registration and shape functions of TFDeformable>RoiPool and its gradient.

#include "adapters/common/roi_pool_call.h"
#include "adapters/tensorflow/call.h"
#include "adapters/tensorflow/op_attributes.h"
#include "adapters/tensorflow/tensors.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tf_deformable {
namespace {

REGISTER_OP("TFDeformable>RoiPool")
    .Input("inputs: T")
    .Input("boxes: Tboxes")
    .Input("box_indices: int32")
    .Input("offsets: num_offsets * Tsampling")
    .Input("mask: num_masks * Tsampling")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tsampling: {half, bfloat16, float, double} = DT_FLOAT")
    .TF_DEFORMABLE_BINS_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<roi_pool::ForwardCall>)
    .Doc(R"doc(
RoI pooling: plain, deformable, position-sensitive, modulated (Dai et al. 2017, equations 5 and 6).

  output[r,i,j,d] = mask[r,i,j] * mean_s x(start + (i,j)*bin + dp + sample_s)
  dp = gamma * offsets[r, i*part_h/ph, j*part_w/pw, d / (D/classes)] * (height, width of the box)

where x is the bilinear interpolation of channel (i*k/ph * k + j*k/pw) * D + d of the box's image.
Positions, weights and sums are computed in float32 (float64 for double) whatever T is. Tsampling is
T, or that type.

inputs: [N,H,W,k*k*D], channels ordered (row, column, D) of the k*k position-sensitive maps.
boxes: [R,4], (y1,x1,y2,x2) in image pixels; a box that is not finite gives NaN.
box_indices: [R], the image of each box in [0,N), or -1 for padding, which gives 0.
offsets: none or one tensor [R,part_h,part_w,classes,2], normalised (dy,dx).
mask: none or one tensor [R,ph,pw].
output: [R,ph,pw,D].
output_size: ph, pw.
group_size: k; 1 unless position-sensitive.
spatial_scale: pixels of the map per pixel of the image.
samples_per_bin: along each axis; 0 with aligned: as many as the bin has pixels.
gamma: scale of the offsets.
aligned: false: the authors' rounding; true: RoIAlign's.
)doc");

REGISTER_OP("TFDeformable>RoiPoolGrad")
    .Input("inputs: T")
    .Input("boxes: Tboxes")
    .Input("box_indices: int32")
    .Input("offsets: num_offsets * Tsampling")
    .Input("mask: num_masks * Tsampling")
    .Input("grad_output: T")
    .Output("grad_inputs: T")
    .Output("grad_offsets: num_offsets * Tsampling")
    .Output("grad_mask: num_masks * Tsampling")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tsampling: {half, bfloat16, float, double} = DT_FLOAT")
    .TF_DEFORMABLE_BINS_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<roi_pool::GradientCall>)
    .Doc(R"doc(
Gradients of TFDeformable>RoiPool. Boxes are not differentiated.

The derivative for the offset is 0 along an axis where a sample is clamped or at an integer.

inputs: as in the forward operator, like boxes, box_indices, offsets, mask and the attributes.
grad_output: [R,ph,pw,D], the gradient of the loss for the output.
grad_inputs: [N,H,W,k*k*D].
grad_offsets: [R,part_h,part_w,classes,2] for each tensor of offsets.
grad_mask: [R,ph,pw] for each mask.
)doc");

// The operators of version 0.1, in which offsets and mask have the type of inputs: models that it
// has exported load and run. Nothing writes them into graphs any more.

REGISTER_OP("TFDeformable>DeformableRoIPool")
    .Input("inputs: T")
    .Input("boxes: Tboxes")
    .Input("box_indices: int32")
    .Input("offsets: num_offsets * T")
    .Input("mask: num_masks * T")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .TF_DEFORMABLE_BINS_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<roi_pool::ForwardCall>)
    .Doc("TFDeformable>RoiPool of version 0.1.");

REGISTER_OP("TFDeformable>DeformableRoIPoolGrad")
    .Input("inputs: T")
    .Input("boxes: Tboxes")
    .Input("box_indices: int32")
    .Input("offsets: num_offsets * T")
    .Input("mask: num_masks * T")
    .Input("grad_output: T")
    .Output("grad_inputs: T")
    .Output("grad_offsets: num_offsets * T")
    .Output("grad_mask: num_masks * T")
    .Attr("T: {half, bfloat16, float, double}")
    .TF_DEFORMABLE_BINS_ATTRIBUTES()
    .SetShapeFn(SetOutputShapes<roi_pool::GradientCall>)
    .Doc("TFDeformable>RoiPoolGrad of version 0.1.");

}  // namespace
}  // namespace tf_deformable
