// A call of RoI pooling, or of its gradient, in terms of no framework: which attributes and tensors
// it has, in which order, and what follows from them.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_ROI_POOL_CALL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_ROI_POOL_CALL_H_

#include <cstdint>
#include <vector>

#include "adapters/common/tensor_view.h"
#include "kernels/roi_pool/geometry.h"
#include "kernels/roi_pool/tensors.h"

namespace tf_deformable::roi_pool {

// Reads: inputs, boxes, box_indices, num_offsets offsets, num_masks masks. Gives: the output.
// The gradient reads the gradient of the output too, at the end, and gives the gradients of inputs,
// offsets and masks.
template <bool is_gradient>
class Call {
 public:
  using Geometry = roi_pool::Geometry;
  static constexpr char kOp[] = "deformable_roi_pool";
  // The name of the handler in XLA (adapters/xla).
  static constexpr const char* kHandler =
      is_gradient ? "tf_deformable_roi_pool_grad" : "tf_deformable_roi_pool";
  static constexpr int kHostInput = -1;  // none: as that of deformable_attention::Call
  static constexpr size_t kBoxes = 1, kBoxIndices = 2;  // the inputs that are no features

  // As those of deformable_conv2d::Call.
  template <typename Visit>
  auto VisitAttributes(Visit&& visit) {
    auto status = visit("num_offsets", &num_offsets_);
    if (status.ok()) status = visit("num_masks", &num_masks_);
    if (status.ok()) status = visit("output_size", &arguments_.output_size);
    if (status.ok()) status = visit("group_size", &arguments_.group_size);
    if (status.ok()) status = visit("spatial_scale", &arguments_.spatial_scale);
    if (status.ok()) status = visit("samples_per_bin", &arguments_.samples_per_bin);
    if (status.ok()) status = visit("gamma", &arguments_.gamma);
    if (status.ok()) status = visit("aligned", &arguments_.aligned);
    return status;
  }
  [[nodiscard]] Status CheckAttributes() const;
  const char* InputName(size_t input) const;
  // Boxes are not looked at: where they have not the type that the kernels take, float or double,
  // the adapter converts them.
  [[nodiscard]] Status CheckTypes(const std::vector<ElementType>& types) const;
  [[nodiscard]] Status Parse(const std::vector<TensorView>& inputs, Geometry* geometry) const;
  std::vector<TensorView> Outputs(const std::vector<TensorView>& inputs,
                                  const Geometry& geometry) const;
  std::vector<ElementType> KernelTypes(const std::vector<TensorView>& inputs) const;
  // The inputs must have the types that KernelTypes tells.
  template <typename S>
  auto Tensors(const std::vector<TensorView>& inputs, const std::vector<TensorView>& outputs) const;

 private:
  size_t MaskInput() const { return 3 + num_offsets_; }
  size_t GradOutputInput() const { return 3 + num_offsets_ + num_masks_; }

  int64_t num_offsets_ = 0, num_masks_ = 0;
  Arguments arguments_;  // only the attributes
};

using ForwardCall = Call<false>;
using GradientCall = Call<true>;

// Checks that boxes have the type in which the kernels take them.
[[nodiscard]] Status CheckConvertedBoxes(const std::vector<TensorView>& inputs);

template <bool is_gradient>
template <typename S>
auto Call<is_gradient>::Tensors(const std::vector<TensorView>& inputs,
                                const std::vector<TensorView>& outputs) const {
  std::conditional_t<is_gradient, BackwardTensors<S>, ForwardTensors<S>> tensors = {};
  const size_t mask = MaskInput();
  tensors.inputs = inputs[0].Data<const S>();
  tensors.boxes = inputs[kBoxes].Data<const ComputeType<S>>();
  tensors.box_indices = inputs[kBoxIndices].Data<const int32_t>();
  if (num_offsets_ > 0) tensors.offsets = inputs[3].ConstSamplingData<S>();
  if (num_masks_ > 0) tensors.mask = inputs[mask].ConstSamplingData<S>();
  if constexpr (is_gradient) {
    const size_t grad_output = GradOutputInput();
    tensors.grad_output = inputs[grad_output].Data<const S>();
    tensors.grad_inputs = outputs[0].Data<S>();
    const size_t grad_mask = 1 + num_offsets_;
    if (num_offsets_ > 0) tensors.grad_offsets = outputs[1].SamplingData<S>();
    if (num_masks_ > 0) tensors.grad_mask = outputs[grad_mask].SamplingData<S>();
  } else {
    tensors.output = outputs[0].Data<S>();
  }
  return tensors;
}

}  // namespace tf_deformable::roi_pool

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_ROI_POOL_CALL_H_
