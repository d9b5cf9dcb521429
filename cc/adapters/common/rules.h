// Rules on the attributes and element types of a call, each stated once for all operators. `op`
// begins every message.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_RULES_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_RULES_H_

#include <cstddef>
#include <cstdint>
#include <string>

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

// Offsets or a mask beside features: their type, or that in which positions are computed. Kernels
// take one for all of a call's, so that the first is checked with this, the others with
// CheckSameType against it.
[[nodiscard]] Status CheckSamplingType(const char* op, ElementType type, ElementType features);

// The same for what else says where to sample, `sampling`, beside `inputs`.
[[nodiscard]] Status CheckSamplingType(const char* op, const char* sampling, ElementType type,
                                       const char* inputs, ElementType features);

// Must be `expected` where `beside` has the type `other`.
[[nodiscard]] Status CheckTypeBeside(const char* op, const char* name, ElementType type,
                                     ElementType expected, const char* beside, ElementType other);

[[nodiscard]] Status CheckInt32(const char* op, const char* name, ElementType type);

// Tensors of a call, when there must be `expected` of them.
[[nodiscard]] Status CheckCount(const char* op, const char* what, size_t got, size_t expected);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_RULES_H_
