#include "adapters/common/tensor_view.h"

namespace tf_deformable {
namespace {

Status Invalid(const char* op, const std::string& message) {
  return Status(Status::Code::kInvalidArgument, std::string(op) + ": " + message);
}

}  // namespace

const char* ToString(ElementType type) {
  switch (type) {
    case ElementType::kHalf:
      return "half";
    case ElementType::kBFloat16:
      return "bfloat16";
    case ElementType::kFloat:
      return "float";
    case ElementType::kDouble:
      return "double";
    case ElementType::kInt32:
      return "int32";
    case ElementType::kOther:
      break;
  }
  return "another type";
}

std::vector<ElementType> TypesOf(const std::vector<TensorView>& views) {
  std::vector<ElementType> types;
  for (const TensorView& view : views) types.push_back(view.type);
  return types;
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

Status CheckSamplingType(const char* op, ElementType type, ElementType features) {
  return CheckSamplingType(op, "offsets and mask", type, "inputs", features);
}

Status CheckSamplingType(const char* op, const char* sampling, ElementType type, const char* inputs,
                         ElementType features) {
  const ElementType positions = ComputeElementType(features);
  if (type == features || type == positions) return Status();
  std::string allowed = ToString(features);
  if (positions != features) allowed += std::string(" or ") + ToString(positions);
  return Invalid(op, std::string(sampling) + " must have dtype " + allowed + " beside " + inputs +
                         " of " + ToString(features) + ", got " + ToString(type));
}

Status CheckCount(const char* op, const char* what, size_t got, size_t expected) {
  if (got == expected) return Status();
  return Invalid(op, std::string("there must be ") + std::to_string(expected) + " " + what +
                         ", got " + std::to_string(got));
}

}  // namespace tf_deformable
