#include "adapters/common/conv2d_branch_call.h"

#include "adapters/common/rules.h"
#include "kernels/base/validation.h"

namespace tf_deformable::deformable_conv2d {

template <bool is_gradient>
Status BranchCall<is_gradient>::CheckAttributes() {
  arguments_.op = kOp;
  Status status = CheckZeroOrOne(kOp, "num_masks", num_masks_);
  if (status.ok() && !(largest_mask_ > 0)) {
    status = Invalid(kOp, "largest_mask must be positive, got " + std::to_string(largest_mask_));
  }
  return status.ok() ? ReadPadding(kOp, padding_, &arguments_.padding) : status;
}

template <bool is_gradient>
const char* BranchCall<is_gradient>::InputName(size_t input) const {
  constexpr const char* kForward[] = {"inputs", "filters", "bias"};
  constexpr const char* kGradient[] = {"inputs", "filters", "grad_offsets"};
  constexpr const char* kMaskedGradient[] = {"inputs", "filters", "mask", "grad_offsets",
                                             "grad_mask"};
  if (!is_gradient) return kForward[input];
  return num_masks_ > 0 ? kMaskedGradient[input] : kGradient[input];
}

template <bool is_gradient>
Status BranchCall<is_gradient>::CheckTypes(const std::vector<ElementType>& types) const {
  Status status = CheckCount(kOp, "tensors", types.size(), is_gradient ? 3 + 2 * num_masks_ : 3);
  if (status.ok()) status = CheckFeaturesType(kOp, "inputs", types[0]);
  for (size_t i = 1; status.ok() && i < types.size(); ++i) {
    status = CheckTypeBeside(kOp, InputName(i), types[i], ComputeElementType(types[0]), "inputs",
                             types[0]);
  }
  return status;
}

template <bool is_gradient>
Status BranchCall<is_gradient>::Parse(const std::vector<TensorView>& inputs,
                                      Geometry* geometry) const {
  Arguments arguments = arguments_;
  arguments.inputs = inputs[0].shape;
  arguments.filters = inputs[1].shape;
  if (!is_gradient) {
    arguments.bias = inputs[2].shape;
    return ParseBranch(arguments, num_masks_ > 0, nullptr, geometry);
  }
  BranchGradientArguments gradient;
  gradient.grad_offsets = inputs[2 + num_masks_].shape;
  if (num_masks_ > 0) {
    gradient.mask = inputs[2].shape;
    gradient.grad_mask = inputs[4].shape;
  }
  return ParseBranch(arguments, num_masks_ > 0, &gradient, geometry);
}

template <bool is_gradient>
std::vector<TensorView> BranchCall<is_gradient>::Outputs(const std::vector<TensorView>& inputs,
                                                         const Geometry& g) const {
  const ElementType wide = ComputeElementType(inputs[0].type);
  if (is_gradient) {
    return {{inputs[0].type, inputs[0].shape}, {wide, inputs[1].shape}, {wide, Shape({g.filters})}};
  }
  const int64_t samples = Product(g.offset_groups, Product(g.kernel_height, g.kernel_width));
  std::vector<TensorView> outputs = {
      {wide, Shape({g.batch, g.output_height, g.output_width, Product(samples, 2)})}};
  if (num_masks_ > 0) {
    outputs.push_back({wide, Shape({g.batch, g.output_height, g.output_width, samples})});
  }
  return outputs;
}

template <bool is_gradient>
std::vector<ElementType> BranchCall<is_gradient>::KernelTypes(
    const std::vector<TensorView>& inputs) const {
  return TypesOf(inputs);
}

template class BranchCall<false>;
template class BranchCall<true>;

}  // namespace tf_deformable::deformable_conv2d
