// Geometry and validation of deformable attention: parsed once from shapes, attributes and the
// sizes of the maps, read by the shape functions, by every kernel adapter and by the kernels.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_GEOMETRY_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_GEOMETRY_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/base/shape.h"
#include "kernels/base/status.h"

namespace tf_deformable::deformable_attention {

// What sampling locations are given in: parts of the map, of which 0 and 1 are the outer edges, or
// pixels, of which 0 is the centre of the first.
enum class Coordinates { kNormalized, kPixels };

// Everything that determines the geometry, as the caller states it; shapes may be partly unknown.
struct Arguments {
  Shape value;                       // [N, S, heads, D]
  Shape spatial_shapes;              // [levels, 2]: height, width
  Shape sampling_locations;          // [N, Q, heads, levels, points, 2]: y, x
  Shape attention_weights;           // [N, Q, heads, levels, points]
  std::optional<Shape> grad_output;  // [N, Q, heads*D]

  // The elements of spatial_shapes, where they are known.
  std::optional<std::vector<int64_t>> level_sizes;
  Coordinates coordinates = Coordinates::kNormalized;
  // The points of each level, where levels differ in them: the points of all levels are one axis
  // then, sampling_locations [N, Q, heads, P, 2] and attention_weights [N, Q, heads, P]. Empty: all
  // levels have as many.
  std::vector<int64_t> num_points;
};

// The map of one level. Its pixels lie row by row among those of all levels.
struct Level {
  int64_t height, width;
  int64_t first_pixel;
  int64_t points;  // that each head of a query reads
};

// A dimension that does not follow from what is known is kUnknown; kernels are only ever given a
// fully known geometry.
struct Geometry {
  int64_t batch = kUnknown;
  int64_t pixels = kUnknown;  // S, of all levels
  int64_t heads = kUnknown;
  int64_t depth = kUnknown;  // D, channels of a head
  int64_t queries = kUnknown;
  int64_t levels = kUnknown;
  int64_t samples = kUnknown;          // of a head of a query: the points of all levels
  std::vector<int64_t> samples_shape;  // [N, Q, heads, levels, points] or [N, Q, heads, P]
  Coordinates coordinates = Coordinates::kNormalized;
  std::vector<Level> maps;  // of the levels; empty while their sizes are unknown

  int64_t channels() const { return heads * depth; }
  int64_t rows() const { return batch * queries * heads; }  // heads of queries
};

// Fills `geometry` with all that follows from `arguments`. The message of an error names the
// argument, the rule and what was got.
[[nodiscard]] Status Parse(const Arguments& arguments, Geometry* geometry);

}  // namespace tf_deformable::deformable_attention

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_GEOMETRY_H_
