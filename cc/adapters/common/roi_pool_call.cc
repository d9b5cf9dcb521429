#include "adapters/common/roi_pool_call.h"

#include <string>

#include "adapters/common/rules.h"

namespace tf_deformable::roi_pool {

template <bool is_gradient>
Status Call<is_gradient>::CheckAttributes() const {
  const Status status = CheckZeroOrOne(kOp, "num_offsets", num_offsets_);
  return status.ok() ? CheckZeroOrOne(kOp, "num_masks", num_masks_) : status;
}

template <bool is_gradient>
const char* Call<is_gradient>::InputName(size_t input) const {
  if (input >= GradOutputInput()) return "grad_output";
  if (input >= MaskInput()) return "mask";
  constexpr const char* kNames[] = {"inputs", "boxes", "box_indices", "offsets"};
  return kNames[input];
}

template <bool is_gradient>
Status Call<is_gradient>::CheckTypes(const std::vector<ElementType>& types) const {
  Status status =
      CheckCount(kOp, "tensors", types.size(), GradOutputInput() + (is_gradient ? 1 : 0));
  if (status.ok()) status = CheckFeaturesType(kOp, "inputs", types[0]);
  if (status.ok()) status = CheckInt32(kOp, InputName(kBoxIndices), types[kBoxIndices]);
  if (status.ok()) {
    std::vector<NamedType> sampling;
    for (size_t i = 3; i < GradOutputInput(); ++i) sampling.push_back({InputName(i), types[i]});
    status = CheckSamplingTypes(kOp, "offsets and mask", sampling, {"inputs", types[0]});
  }
  if (is_gradient && status.ok()) {
    status = CheckSameType(kOp, "grad_output", types.back(), "inputs", types[0]);
  }
  return status;
}

template <bool is_gradient>
Status Call<is_gradient>::Parse(const std::vector<TensorView>& inputs, Geometry* geometry) const {
  Arguments arguments = arguments_;
  arguments.inputs = inputs[0].shape;
  arguments.boxes = inputs[kBoxes].shape;
  arguments.box_indices = inputs[kBoxIndices].shape;
  if (num_offsets_ > 0) arguments.offsets = inputs[3].shape;
  if (num_masks_ > 0) arguments.mask = inputs[MaskInput()].shape;
  if (is_gradient) arguments.grad_output = inputs[GradOutputInput()].shape;
  return roi_pool::Parse(arguments, geometry);
}

template <bool is_gradient>
std::vector<TensorView> Call<is_gradient>::Outputs(const std::vector<TensorView>& inputs,
                                                   const Geometry& g) const {
  if (!is_gradient) {
    return {{inputs[0].type, Shape({g.boxes, g.pooled_height, g.pooled_width, g.depth})}};
  }
  std::vector<TensorView> outputs = {{inputs[0].type, inputs[0].shape}};
  for (size_t i = 3; i < GradOutputInput(); ++i) {
    outputs.push_back({inputs[i].type, inputs[i].shape});
  }
  return outputs;
}

template <bool is_gradient>
std::vector<ElementType> Call<is_gradient>::KernelTypes(
    const std::vector<TensorView>& inputs) const {
  std::vector<ElementType> types = TypesOf(inputs);
  types[kBoxes] = ComputeElementType(types[0]);
  return types;
}

Status CheckConvertedBoxes(const std::vector<TensorView>& inputs) {
  const ElementType features = inputs[0].type;
  return CheckTypeBeside(ForwardCall::kOp, "boxes", inputs[ForwardCall::kBoxes].type,
                         ComputeElementType(features), "inputs", features);
}

template class Call<false>;
template class Call<true>;

}  // namespace tf_deformable::roi_pool
