#include "kernels/base/shape.h"

namespace tf_deformable {

std::string ToString(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) text += ",";
    text += values[i] == kUnknown ? "?" : std::to_string(values[i]);
  }
  return text + "]";
}

std::string ToString(const Shape& shape) { return shape.known_rank ? ToString(shape.dims) : "?"; }

}  // namespace tf_deformable
