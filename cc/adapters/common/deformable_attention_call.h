// A call of multi-scale deformable attention, or of its gradient, in terms of no framework: which
// attributes and tensors it has, in which order, and what follows from them.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_DEFORMABLE_ATTENTION_CALL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_DEFORMABLE_ATTENTION_CALL_H_

#include <string>
#include <type_traits>
#include <vector>

#include "adapters/common/tensor_view.h"
#include "kernels/deformable_attention/geometry.h"
#include "kernels/deformable_attention/tensors.h"

namespace tf_deformable::deformable_attention {

// Reads: value, spatial_shapes, sampling_locations, attention_weights. Gives: the output.
// The gradient reads the gradient of the output too, and gives the gradients of value,
// sampling_locations and attention_weights. Of spatial_shapes the elements are read, in the host's
// memory; a view without data is one whose elements are not known.
template <bool is_gradient>
class Call {
 public:
  using Geometry = deformable_attention::Geometry;
  static constexpr char kOp[] = "multi_scale_deformable_attention";
  // The name of the handler in XLA (adapters/xla).
  static constexpr const char* kHandler =
      is_gradient ? "tf_deformable_attention_grad" : "tf_deformable_attention";
  // spatial_shapes: the call reads its elements, which the kernels are cut by.
  static constexpr int kHostInput = 1;

  // As that of deformable_conv2d::Call.
  template <typename Visit>
  auto VisitAttributes(Visit&& visit) {
    auto status = visit("coordinates", &coordinates_);
    return status.ok() ? visit("num_points", &arguments_.num_points) : status;
  }

  // Checks what no shape is needed for; to be called once the attributes are known.
  [[nodiscard]] Status CheckAttributes();

  // Of a tensor that the call reads, for messages.
  const char* InputName(size_t input) const;

  // One type for each tensor that the call reads.
  [[nodiscard]] Status CheckTypes(const std::vector<ElementType>& types) const;

  // Validates attributes and shapes, which may be partly unknown.
  [[nodiscard]] Status Parse(const std::vector<TensorView>& inputs, Geometry* geometry) const;

  // Types and shapes of what the call gives.
  std::vector<TensorView> Outputs(const std::vector<TensorView>& inputs,
                                  const Geometry& geometry) const;

  // The types in which the kernels take what the call reads.
  std::vector<ElementType> KernelTypes(const std::vector<TensorView>& inputs) const;

  // The tensors as the kernels take them.
  template <typename S>
  auto Tensors(const std::vector<TensorView>& inputs, const std::vector<TensorView>& outputs) const;

 private:
  std::string coordinates_;
  Arguments arguments_;  // only the attributes
};

using ForwardCall = Call<false>;
using GradientCall = Call<true>;

template <bool is_gradient>
template <typename S>
auto Call<is_gradient>::Tensors(const std::vector<TensorView>& inputs,
                                const std::vector<TensorView>& outputs) const {
  std::conditional_t<is_gradient, BackwardTensors<S>, ForwardTensors<S>> tensors = {};
  tensors.value = inputs[0].Data<const S>();
  tensors.locations = inputs[2].ConstSamplingData<S>();
  tensors.weights = inputs[3].ConstSamplingData<S>();
  if constexpr (is_gradient) {
    tensors.grad_output = inputs[4].Data<const S>();
    tensors.grad_value = outputs[0].Data<S>();
    tensors.grad_locations = outputs[1].SamplingData<S>();
    tensors.grad_weights = outputs[2].SamplingData<S>();
  } else {
    tensors.output = outputs[0].Data<S>();
  }
  return tensors;
}

}  // namespace tf_deformable::deformable_attention

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_DEFORMABLE_ATTENTION_CALL_H_
