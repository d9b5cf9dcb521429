// Rules on the attributes and element types of a call, each stated once for all operators. `op`
// begins every message.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_RULES_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_RULES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "adapters/common/element_type.h"
#include "kernels/base/status.h"

namespace tf_deformable {

// An error in the caller's arguments.
inline Status Invalid(const char* op, const std::string& message) {
  return Status(Status::Code::kInvalidArgument, std::string(op) + ": " + message);
}

// An optional tensor of a call, of which there are `count`.
[[nodiscard]] Status CheckZeroOrOne(const char* op, const char* name, int64_t count);

// Features: half, bfloat16, float or double.
[[nodiscard]] Status CheckFeaturesType(const char* op, const char* name, ElementType type);

// Must be `expected`, which is the type of the tensor `other`.
[[nodiscard]] Status CheckSameType(const char* op, const char* name, ElementType type,
                                   const char* other, ElementType expected);

// A tensor's name, for messages, and the type of its elements.
struct NamedType {
  const char* name;
  ElementType type;
};

// Of the tensors that say where to sample, in the order of the call (`words` names them all): the
// first has the type of the features, or that in which positions are computed. Kernels take one
// type for all of them, so that the others have that of the first.
[[nodiscard]] Status CheckSamplingTypes(const char* op, const char* words,
                                        const std::vector<NamedType>& sampling,
                                        const NamedType& features);

// Must be `expected` where `beside` has the type `other`.
[[nodiscard]] Status CheckTypeBeside(const char* op, const char* name, ElementType type,
                                     ElementType expected, const char* beside, ElementType other);

[[nodiscard]] Status CheckInt32(const char* op, const char* name, ElementType type);

// Tensors of a call, when there must be `expected` of them.
[[nodiscard]] Status CheckCount(const char* op, const char* what, size_t got, size_t expected);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_RULES_H_
