// Element types of tensors as a value, for adapters that learn them at run time.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_ELEMENT_TYPE_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_ELEMENT_TYPE_H_

#include <cstdint>

#include "kernels/base/float_types.h"

namespace tf_deformable {

enum class ElementType { kHalf, kBFloat16, kFloat, kDouble, kInt32, kOther };

// As TensorFlow names it: "half", "bfloat16", "float", "double", "int32".
const char* ToString(ElementType type);

template <typename S>
struct ElementTypeOf;
template <>
struct ElementTypeOf<Half> {
  static constexpr ElementType value = ElementType::kHalf;
};
template <>
struct ElementTypeOf<BFloat16> {
  static constexpr ElementType value = ElementType::kBFloat16;
};
template <>
struct ElementTypeOf<float> {
  static constexpr ElementType value = ElementType::kFloat;
};
template <>
struct ElementTypeOf<double> {
  static constexpr ElementType value = ElementType::kDouble;
};
template <>
struct ElementTypeOf<int32_t> {
  static constexpr ElementType value = ElementType::kInt32;
};

// The type in which positions beside features of this type are computed.
inline ElementType ComputeElementType(ElementType features) {
  return features == ElementType::kDouble ? ElementType::kDouble : ElementType::kFloat;
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_ELEMENT_TYPE_H_
