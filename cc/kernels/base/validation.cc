#include "kernels/base/validation.h"

#include <algorithm>

namespace tf_deformable {

std::string AtMostLargest() { return ", at most " + std::to_string(kLargestAttribute); }

int64_t FirstKnown(std::initializer_list<int64_t> values) {
  for (int64_t value : values) {
    if (Known(value)) return value;
  }
  return kUnknown;
}

bool AllInRange(const std::vector<int64_t>& values, size_t count, int64_t lowest) {
  return values.size() == count && std::all_of(values.begin(), values.end(), [lowest](int64_t v) {
           return v >= lowest && v <= kLargestAttribute;
         });
}

std::string DimensionToString(int64_t size) { return Known(size) ? std::to_string(size) : "?"; }

std::string ListToString(const std::vector<int64_t>& values) {
  std::string text;
  for (int64_t value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
  return "[" + text + "]";
}

std::string RankError(const char* op, const char* name, const char* layout, int rank,
                      const Shape& shape) {
  if (!shape.known_rank || static_cast<int>(shape.dims.size()) == rank) return "";
  return std::string(op) + ": " + name + " must have rank " + std::to_string(rank) + " " + layout +
         ", got shape " + ToString(shape);
}

}  // namespace tf_deformable
