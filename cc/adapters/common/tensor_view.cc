#include "adapters/common/tensor_view.h"

namespace tf_deformable {

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

}  // namespace tf_deformable
