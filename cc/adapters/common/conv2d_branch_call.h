// A call of the branch that predicts the offsets and the mask of a deformable convolution, or of
// its gradient, in terms of no framework (see deformable_conv2d_call.h).
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_BRANCH_CALL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_BRANCH_CALL_H_

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "adapters/common/conv2d_attributes.h"
#include "adapters/common/tensor_view.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"

namespace tf_deformable::deformable_conv2d {

// Reads: inputs, filters, bias. Gives: offsets, num_masks masks.
// The gradient reads inputs, filters, num_masks masks, the gradient of the offsets, those of the
// masks, and gives the gradients of inputs, filters and bias.
template <bool is_gradient>
class BranchCall {
 public:
  using Geometry = deformable_conv2d::Geometry;
  static constexpr char kOp[] = "conv2d_branch";
  static constexpr const char* kHandler =
      is_gradient ? "tf_deformable_conv2d_branch_grad" : "tf_deformable_conv2d_branch";
  static constexpr int kHostInput = -1;  // none: as that of deformable_attention::Call

  template <typename Visit>
  auto VisitAttributes(Visit&& visit) {
    auto status = visit("num_masks", &num_masks_);
    if (status.ok()) status = visit("largest_mask", &largest_mask_);
    return status.ok() ? VisitWindow(visit, &arguments_, &padding_) : status;
  }

  [[nodiscard]] Status CheckAttributes();
  const char* InputName(size_t input) const;
  [[nodiscard]] Status CheckTypes(const std::vector<ElementType>& types) const;
  [[nodiscard]] Status Parse(const std::vector<TensorView>& inputs, Geometry* geometry) const;
  std::vector<TensorView> Outputs(const std::vector<TensorView>& inputs,
                                  const Geometry& geometry) const;
  std::vector<ElementType> KernelTypes(const std::vector<TensorView>& inputs) const;
  template <typename S>
  auto Tensors(const std::vector<TensorView>& inputs, const std::vector<TensorView>& outputs) const;

 private:
  int64_t num_masks_ = 0;
  float largest_mask_ = 1;
  std::string padding_;
  Arguments arguments_;  // only the attributes
};

using BranchForwardCall = BranchCall<false>;
using BranchGradientCall = BranchCall<true>;

template <bool is_gradient>
template <typename S>
auto BranchCall<is_gradient>::Tensors(const std::vector<TensorView>& inputs,
                                      const std::vector<TensorView>& outputs) const {
  using A = ComputeType<S>;
  std::conditional_t<is_gradient, BranchGradientTensors<S>, BranchTensors<S>> tensors = {};
  tensors.inputs = inputs[0].Data<const S>();
  tensors.filters = inputs[1].Data<const A>();
  tensors.largest_mask = static_cast<A>(largest_mask_);
  if constexpr (is_gradient) {
    if (num_masks_ > 0) {
      tensors.mask = inputs[2].Data<const A>();
      tensors.grad_mask = inputs[4].Data<const A>();
    }
    tensors.grad_offsets = inputs[2 + num_masks_].Data<const A>();
    tensors.grad_inputs = outputs[0].Data<S>();
    tensors.grad_filters = outputs[1].Data<A>();
    tensors.grad_bias = outputs[2].Data<A>();
  } else {
    tensors.bias = inputs[2].Data<const A>();
    tensors.offsets = outputs[0].Data<A>();
    if (num_masks_ > 0) tensors.mask = outputs[1].Data<A>();
  }
  return tensors;
}

}  // namespace tf_deformable::deformable_conv2d

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_BRANCH_CALL_H_
