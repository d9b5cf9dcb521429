// A tensor of any framework, as the calls of operators read it, and the rules on element types.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_TENSOR_VIEW_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_TENSOR_VIEW_H_

#include <string>
#include <vector>

#include "adapters/common/element_type.h"
#include "kernels/base/shape.h"
#include "kernels/base/status.h"
#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable {

struct TensorView {
  ElementType type = ElementType::kOther;
  Shape shape;
  // Null where only types and shapes are asked for. What an operator reads is never written.
  void* data = nullptr;

  template <typename S>
  S* Data() const {
    return static_cast<S*>(data);
  }

  // Of offsets, a mask or a gradient for one of them, beside features of type S.
  template <typename S>
  SamplingTensor<S> SamplingData() const {
    using A = ComputeType<S>;
    if (type == ElementTypeOf<A>::value) return Data<A>();
    return Data<S>();
  }
  template <typename S>
  SamplingTensor<const S> ConstSamplingData() const {
    using A = ComputeType<S>;
    if (type == ElementTypeOf<A>::value) return Data<const A>();
    return Data<const S>();
  }
};

std::vector<ElementType> TypesOf(const std::vector<TensorView>& views);

// What follows are rules on the element types of an operator's tensors. `op` begins the message.

// Features: half, bfloat16, float or double.
[[nodiscard]] Status CheckFeaturesType(const char* op, const char* name, ElementType type);

// Must be `expected`, which is the type of the tensor `other`.
[[nodiscard]] Status CheckSameType(const char* op, const char* name, ElementType type,
                                   const char* other, ElementType expected);

// Offsets or a mask beside features: their type, or that in which positions are computed. Kernels
// take one for all of a call's, so that the first is checked with this, the others with
// CheckSameType against it.
[[nodiscard]] Status CheckSamplingType(const char* op, ElementType type, ElementType features);

// The same for what else says where to sample, `sampling`, beside `inputs`.
[[nodiscard]] Status CheckSamplingType(const char* op, const char* sampling, ElementType type,
                                       const char* inputs, ElementType features);

// Tensors of a call, when there must be `expected` of them.
[[nodiscard]] Status CheckCount(const char* op, const char* what, size_t got, size_t expected);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_TENSOR_VIEW_H_
