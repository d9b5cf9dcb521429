// A tensor shape of which parts may be unknown, and how shapes are printed in messages.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_SHAPE_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_SHAPE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tf_deformable {

inline constexpr int64_t kUnknown = -1;

struct Shape {
  bool known_rank = false;
  std::vector<int64_t> dims;  // kUnknown where a dimension is not known

  Shape() = default;
  explicit Shape(std::vector<int64_t> d) : known_rank(true), dims(std::move(d)) {}

  int64_t dim(int i) const { return known_rank ? dims[i] : kUnknown; }
};

// "[2,9,?,4]", or "?" when not even the rank is known.
std::string ToString(const std::vector<int64_t>& values);
std::string ToString(const Shape& shape);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_SHAPE_H_
