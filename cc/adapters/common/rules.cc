#include "adapters/common/rules.h"

namespace tf_deformable {

Status CheckZeroOrOne(const char* op, const char* name, int64_t count) {
  if (count == 0 || count == 1) return Status();
  return Invalid(op, std::string(name) + " must be 0 or 1, got " + std::to_string(count));
}

Status CheckFeaturesType(const char* op, const char* name, ElementType type) {
  if (type != ElementType::kInt32 && type != ElementType::kOther) return Status();
  return Invalid(op, std::string(name) + " must have dtype half, bfloat16, float or double, got " +
                         ToString(type));
}

Status CheckSameType(const char* op, const char* name, ElementType type, const char* other,
                     ElementType expected) {
  if (type == expected) return Status();
  return Invalid(op, std::string(name) + " must have the dtype of " + other + " (" +
                         ToString(expected) + "), got " + ToString(type));
}

Status CheckSamplingTypes(const char* op, const char* words, const std::vector<NamedType>& sampling,
                          const NamedType& features) {
  if (sampling.empty()) return Status();
  const NamedType& first = sampling.front();
  const ElementType positions = ComputeElementType(features.type);
  if (first.type != features.type && first.type != positions) {
    std::string allowed = ToString(features.type);
    if (positions != features.type) allowed += std::string(" or ") + ToString(positions);
    return Invalid(op, std::string(words) + " must have dtype " + allowed + " beside " +
                           features.name + " of " + ToString(features.type) + ", got " +
                           ToString(first.type));
  }
  for (const NamedType& each : sampling) {
    const Status status = CheckSameType(op, each.name, each.type, first.name, first.type);
    if (!status.ok()) return status;
  }
  return Status();
}

Status CheckTypeBeside(const char* op, const char* name, ElementType type, ElementType expected,
                       const char* beside, ElementType other) {
  if (type == expected) return Status();
  return Invalid(op, std::string(name) + " must have dtype " + ToString(expected) + " beside " +
                         beside + " of " + ToString(other) + ", got " + ToString(type));
}

Status CheckInt32(const char* op, const char* name, ElementType type) {
  if (type == ElementType::kInt32) return Status();
  return Invalid(op, std::string(name) + " must have dtype int32, got " + ToString(type));
}

Status CheckCount(const char* op, const char* what, size_t got, size_t expected) {
  if (got == expected) return Status();
  return Invalid(op, std::string("there must be ") + std::to_string(expected) + " " + what +
                         ", got " + std::to_string(got));
}

}  // namespace tf_deformable
