#include "adapters/common/deformable_conv2d_call.h"

#include "adapters/common/rules.h"

namespace tf_deformable::deformable_conv2d {

template <bool is_gradient>
Status Call<is_gradient>::CheckAttributes() {
  Status status = CheckZeroOrOne(kOp, "num_masks", num_masks_);
  if (status.ok()) status = CheckZeroOrOne(kOp, "num_biases", num_biases_);
  return status.ok() ? ReadPadding(kOp, padding_, &arguments_.padding) : status;
}

template <bool is_gradient>
const char* Call<is_gradient>::InputName(size_t input) const {
  if (input >= LastInput()) return is_gradient ? "grad_output" : "bias";
  constexpr const char* kNames[] = {"inputs", "filters", "offsets", "mask"};
  return kNames[input];
}

template <bool is_gradient>
Status Call<is_gradient>::CheckTypes(const std::vector<ElementType>& types) const {
  Status status =
      CheckCount(kOp, "tensors", types.size(), LastInput() + (is_gradient ? 1 : num_biases_));
  if (status.ok()) status = CheckFeaturesType(kOp, "inputs", types[0]);
  if (status.ok()) status = CheckSameType(kOp, InputName(1), types[1], "inputs", types[0]);
  if (status.ok()) {
    std::vector<NamedType> sampling;
    for (size_t i = 2; i < LastInput(); ++i) sampling.push_back({InputName(i), types[i]});
    status = CheckSamplingTypes(kOp, "offsets and mask", sampling, {"inputs", types[0]});
  }
  for (size_t i = LastInput(); status.ok() && i < types.size(); ++i) {
    status = CheckSameType(kOp, InputName(i), types[i], "inputs", types[0]);
  }
  return status;
}

template <bool is_gradient>
Status Call<is_gradient>::Parse(const std::vector<TensorView>& inputs, Geometry* geometry) const {
  Arguments arguments = arguments_;
  arguments.inputs = inputs[0].shape;
  arguments.filters = inputs[1].shape;
  arguments.offsets = inputs[2].shape;
  if (num_masks_ > 0) arguments.mask = inputs[3].shape;
  if (is_gradient) {
    arguments.grad_output = inputs[LastInput()].shape;
  } else if (num_biases_ > 0) {
    arguments.bias = inputs[LastInput()].shape;
  }
  return deformable_conv2d::Parse(arguments, geometry);
}

template <bool is_gradient>
std::vector<TensorView> Call<is_gradient>::Outputs(const std::vector<TensorView>& inputs,
                                                   const Geometry& g) const {
  if (!is_gradient) {
    return {{inputs[0].type, Shape({g.batch, g.output_height, g.output_width, g.filters})}};
  }
  std::vector<TensorView> outputs;
  for (size_t i = 0; i < LastInput(); ++i) outputs.push_back({inputs[i].type, inputs[i].shape});
  return outputs;
}

template <bool is_gradient>
std::vector<ElementType> Call<is_gradient>::KernelTypes(
    const std::vector<TensorView>& inputs) const {
  return TypesOf(inputs);
}

template class Call<false>;
template class Call<true>;

}  // namespace tf_deformable::deformable_conv2d
