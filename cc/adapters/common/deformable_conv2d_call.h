// A call of the deformable convolution, or of its gradient, in terms of no framework: which
// attributes and tensors it has, in which order, and what follows from them.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_DEFORMABLE_CONV2D_CALL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_DEFORMABLE_CONV2D_CALL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/common/conv2d_attributes.h"
#include "adapters/common/tensor_view.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"

namespace tf_deformable::deformable_conv2d {

// Reads: inputs, filters, offsets, num_masks masks, num_biases biases. Gives: the output.
// The gradient reads inputs, filters, offsets, num_masks masks, the gradient of the output, and
// gives the gradients of all of these but the last.
template <bool is_gradient>
class Call {
 public:
  using Geometry = deformable_conv2d::Geometry;
  static constexpr char kOp[] = "deformable_conv2d";
  // The name of the handler in XLA (adapters/xla).
  static constexpr const char* kHandler =
      is_gradient ? "tf_deformable_conv2d_grad" : "tf_deformable_conv2d";
  static constexpr int kHostInput = -1;  // none: as that of deformable_attention::Call

  // Calls visit(name, pointer) for each attribute, to read or to write it, until a result, which
  // has ok(), is an error; returns the last one.
  template <typename Visit>
  auto VisitAttributes(Visit&& visit) {
    auto status = visit("num_masks", &num_masks_);
    if constexpr (!is_gradient) {
      if (status.ok()) status = visit("num_biases", &num_biases_);
    }
    return status.ok() ? VisitWindow(visit, &arguments_, &padding_) : status;
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
  size_t LastInput() const { return 3 + num_masks_; }

  int64_t num_masks_ = 0, num_biases_ = 0;
  std::string padding_;
  Arguments arguments_;  // only the attributes
};

using ForwardCall = Call<false>;
using GradientCall = Call<true>;

template <bool is_gradient>
template <typename S>
auto Call<is_gradient>::Tensors(const std::vector<TensorView>& inputs,
                                const std::vector<TensorView>& outputs) const {
  std::conditional_t<is_gradient, BackwardTensors<S>, ForwardTensors<S>> tensors = {};
  const size_t last = LastInput();
  tensors.inputs = inputs[0].Data<const S>();
  tensors.filters = inputs[1].Data<const S>();
  tensors.offsets = inputs[2].ConstSamplingData<S>();
  if (num_masks_ > 0) tensors.mask = inputs[3].ConstSamplingData<S>();
  if constexpr (is_gradient) {
    tensors.grad_output = inputs[last].Data<const S>();
    tensors.grad_inputs = outputs[0].Data<S>();
    tensors.grad_filters = outputs[1].Data<S>();
    tensors.grad_offsets = outputs[2].SamplingData<S>();
    if (num_masks_ > 0) tensors.grad_mask = outputs[3].SamplingData<S>();
  } else {
    if (num_biases_ > 0) tensors.bias = inputs[last].Data<const S>();
    tensors.output = outputs[0].Data<S>();
  }
  return tensors;
}

}  // namespace tf_deformable::deformable_conv2d

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_DEFORMABLE_CONV2D_CALL_H_
