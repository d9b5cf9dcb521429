#include "adapters/common/deformable_attention_call.h"

#include "adapters/common/rules.h"
#include "kernels/base/validation.h"

namespace tf_deformable::deformable_attention {

template <bool is_gradient>
Status Call<is_gradient>::CheckAttributes() {
  if (coordinates_ == "normalized") {
    arguments_.coordinates = Coordinates::kNormalized;
  } else if (coordinates_ == "pixels") {
    arguments_.coordinates = Coordinates::kPixels;
  } else {
    return Invalid(kOp, "coordinates must be normalized or pixels, got " + coordinates_);
  }
  return Status();
}

template <bool is_gradient>
const char* Call<is_gradient>::InputName(size_t input) const {
  constexpr const char* kNames[] = {"value", "spatial_shapes", "sampling_locations",
                                    "attention_weights", "grad_output"};
  return kNames[input];
}

template <bool is_gradient>
Status Call<is_gradient>::CheckTypes(const std::vector<ElementType>& types) const {
  Status status = CheckCount(kOp, "tensors", types.size(), is_gradient ? 5 : 4);
  if (status.ok()) status = CheckFeaturesType(kOp, "value", types[0]);
  if (status.ok()) status = CheckInt32(kOp, InputName(kHostInput), types[kHostInput]);
  if (status.ok()) {
    status = CheckSamplingTypes(kOp, "sampling_locations and attention_weights",
                                {{InputName(2), types[2]}, {InputName(3), types[3]}},
                                {"a value", types[0]});
  }
  if (status.ok() && is_gradient) {
    status = CheckSameType(kOp, InputName(4), types[4], "value", types[0]);
  }
  return status;
}

template <bool is_gradient>
Status Call<is_gradient>::Parse(const std::vector<TensorView>& inputs, Geometry* geometry) const {
  Arguments arguments = arguments_;
  arguments.value = inputs[0].shape;
  arguments.spatial_shapes = inputs[kHostInput].shape;
  arguments.sampling_locations = inputs[2].shape;
  arguments.attention_weights = inputs[3].shape;
  if (is_gradient) arguments.grad_output = inputs[4].shape;
  if (const auto* sizes = inputs[kHostInput].Data<const int32_t>()) {
    int64_t size = 1;
    for (const int64_t dim : inputs[kHostInput].shape.dims) size *= dim;
    arguments.level_sizes = std::vector<int64_t>(sizes, sizes + size);
  }
  return deformable_attention::Parse(arguments, geometry);
}

template <bool is_gradient>
std::vector<TensorView> Call<is_gradient>::Outputs(const std::vector<TensorView>& inputs,
                                                   const Geometry& g) const {
  if (!is_gradient) {
    return {{inputs[0].type, Shape({g.batch, g.queries, Product(g.heads, g.depth)})}};
  }
  std::vector<int64_t> locations = g.samples_shape;
  locations.push_back(2);
  return {{inputs[0].type, Shape({g.batch, g.pixels, g.heads, g.depth})},
          {inputs[2].type, Shape(locations)},
          {inputs[3].type, Shape(g.samples_shape)}};
}

template <bool is_gradient>
std::vector<ElementType> Call<is_gradient>::KernelTypes(
    const std::vector<TensorView>& inputs) const {
  return TypesOf(inputs);
}

template class Call<false>;
template class Call<true>;

}  // namespace tf_deformable::deformable_attention
