// Pieces of the operators' shape validation: what is known, and the messages they have in common.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_VALIDATION_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_VALIDATION_H_

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "kernels/base/shape.h"

namespace tf_deformable {

// Bounds integer attributes, so that no product of one with a tensor's size can overflow.
inline constexpr int64_t kLargestAttribute = std::numeric_limits<int32_t>::max();

// Bounds the elements of an output: memory for more cannot be addressed, and the sizes that plans
// derive from them do not overflow.
inline constexpr int64_t kMostElements = int64_t{1} << 48;

inline bool Known(int64_t value) { return value != kUnknown; }

// True when both are known and differ.
inline bool Differ(int64_t a, int64_t b) { return Known(a) && Known(b) && a != b; }

// kUnknown if either is; the largest integer where the product is beyond it, which no size equals.
int64_t Product(int64_t a, int64_t b);

// ", at most <largest>": ends the rule of an integer attribute.
std::string AtMost(int64_t largest);

int64_t FirstKnown(std::initializer_list<int64_t> values);

// True for `count` values, each in [lowest, kLargestAttribute].
bool AllInRange(const std::vector<int64_t>& values, size_t count, int64_t lowest);

// A dimension: its size, or "?".
std::string DimensionToString(int64_t size);

// Values of an attribute, as "[2,-1]": unlike in a shape, -1 means -1.
std::string ListToString(const std::vector<int64_t>& values);

// "<op>: <name> must have rank <rank> <layout>, got shape [..]"; empty if the rank is right.
std::string RankError(const char* op, const char* name, const char* layout, int rank,
                      const Shape& shape);

// "<op>: <name> must have shape <layout> = <expected>, got shape [..]".
std::string ShapeError(const char* op, const char* name, const char* layout,
                       const std::string& expected, const Shape& shape);

// "<op>: output must have at most <kMostElements> elements, got shape [..]"; empty if it has, as
// far as is known. No dimension counts for less than 1, so that the sizes of one box or image are
// small enough where there are none.
std::string OutputError(const char* op, const std::vector<int64_t>& dims);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_VALIDATION_H_
