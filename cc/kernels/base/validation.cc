#include "kernels/base/validation.h"

#include <algorithm>

namespace tf_deformable {

std::string AtMost(int64_t largest) { return ", at most " + std::to_string(largest); }

int64_t Product(int64_t a, int64_t b) {
  if (!Known(a) || !Known(b)) return kUnknown;
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<int64_t>::max() : product;
}

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

std::string ShapeError(const char* op, const char* name, const char* layout,
                       const std::string& expected, const Shape& shape) {
  return std::string(op) + ": " + name + " must have shape " + layout + " = " + expected +
         ", got shape " + ToString(shape);
}

std::string OutputError(const char* op, const std::vector<int64_t>& dims) {
  int64_t elements = 1;
  for (int64_t dim : dims) elements = Product(elements, std::max<int64_t>(dim, 1));
  if (elements <= kMostElements) return "";
  return std::string(op) + ": output must have at most " + std::to_string(kMostElements) +
         " elements, got shape " + ToString(dims);
}

}  // namespace tf_deformable
