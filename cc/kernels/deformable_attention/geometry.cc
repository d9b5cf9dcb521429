#include "kernels/deformable_attention/geometry.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/validation.h"

namespace tf_deformable::deformable_attention {
namespace {

constexpr char kOp[] = "multi_scale_deformable_attention";

std::string Message(const std::string& text) { return std::string(kOp) + ": " + text; }

// The axes of sampling_locations and attention_weights.
struct Layouts {
  const char *locations, *weights;
};
constexpr Layouts kSamePoints = {"[N,Q,heads,levels,points,2]", "[N,Q,heads,levels,points]"};
constexpr Layouts kOwnPoints = {"[N,Q,heads,sum of num_points,2]", "[N,Q,heads,sum of num_points]"};

std::string CheckRanks(const Arguments& a, const Layouts& layouts, int64_t samples_rank) {
  std::string error = RankError(kOp, "value", "[N,S,heads,D]", 4, a.value);
  if (error.empty()) error = RankError(kOp, "spatial_shapes", "[levels,2]", 2, a.spatial_shapes);
  if (error.empty()) {
    error = RankError(kOp, "sampling_locations", layouts.locations, samples_rank + 1,
                      a.sampling_locations);
  }
  if (error.empty()) {
    error = RankError(kOp, "attention_weights", layouts.weights, samples_rank, a.attention_weights);
  }
  if (error.empty() && a.grad_output) {
    error = RankError(kOp, "grad_output", "[N,Q,heads*D]", 3, *a.grad_output);
  }
  return error;
}

// Whether a tensor of known rank differs from what is expected of it.
bool ShapeDiffers(const Shape& shape, const std::vector<int64_t>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (Differ(shape.dim(i), expected[i])) return true;
  }
  return false;
}

// "[[7,9],[4,5]]"
std::string LevelsToString(const std::vector<int64_t>& sizes) {
  std::string text;
  for (size_t i = 0; i + 1 < sizes.size(); i += 2) {
    text += (text.empty() ? "" : ",") + ListToString({sizes[i], sizes[i + 1]});
  }
  return "[" + text + "]";
}

// Sets the maps, and the pixels if value does not tell them.
std::string FillMaps(const Arguments& a, Geometry* g) {
  const std::vector<int64_t>& sizes = *a.level_sizes;
  if (!AllInRange(sizes, sizes.size(), 0)) {
    return Message("spatial_shapes must be heights and widths of at least 0" +
                   AtMost(kLargestAttribute) + ", got " + LevelsToString(sizes));
  }
  constexpr int64_t kMostPixels = int64_t{1} << 61;  // no tensor has so many; sums do not overflow
  int64_t pixels = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    const int64_t points = a.num_points.empty() ? g->samples_shape.back() : a.num_points[i / 2];
    g->maps.push_back({sizes[i], sizes[i + 1], pixels, points});
    pixels = std::min(pixels + sizes[i] * sizes[i + 1], kMostPixels);
  }
  if (Differ(g->pixels, pixels)) {
    return Message("value must have the pixels of all levels, S = sum of H*W of spatial_shapes, " +
                   std::string("got S=") + std::to_string(g->pixels) + " and spatial_shapes " +
                   LevelsToString(sizes));
  }
  g->pixels = pixels;
  return "";
}

// What is wrong with the arguments, or an empty string.
std::string FillGeometry(const Arguments& a, Geometry* geometry) {
  Geometry& g = *geometry;
  const bool same_points = a.num_points.empty();
  if (!AllInRange(a.num_points, a.num_points.size(), 0)) {
    return Message("num_points must be integers of at least 0" + AtMost(kLargestAttribute) +
                   ", got " + ListToString(a.num_points));
  }
  const Layouts& layouts = same_points ? kSamePoints : kOwnPoints;
  std::string error = CheckRanks(a, layouts, same_points ? 5 : 4);
  if (!error.empty()) return error;

  const Shape& locations = a.sampling_locations;
  const Shape& weights = a.attention_weights;
  const Shape grad_output = a.grad_output ? *a.grad_output : Shape();
  g.coordinates = a.coordinates;
  g.batch = FirstKnown({a.value.dim(0), locations.dim(0), weights.dim(0), grad_output.dim(0)});
  g.pixels = a.value.dim(1);
  g.heads = FirstKnown({a.value.dim(2), locations.dim(2), weights.dim(2)});
  g.depth = a.value.dim(3);
  g.queries = FirstKnown({locations.dim(1), weights.dim(1), grad_output.dim(1)});
  g.samples_shape = {g.batch, g.queries, g.heads};
  if (same_points) {
    g.levels = FirstKnown({a.spatial_shapes.dim(0), locations.dim(3), weights.dim(3)});
    const int64_t points = FirstKnown({locations.dim(4), weights.dim(4)});
    g.samples = Product(g.levels, points);
    g.samples_shape.insert(g.samples_shape.end(), {g.levels, points});
  } else {
    g.levels = static_cast<int64_t>(a.num_points.size());
    g.samples = std::accumulate(a.num_points.begin(), a.num_points.end(), int64_t{0});
    g.samples_shape.push_back(g.samples);
  }

  if (ShapeDiffers(a.value, {g.batch, g.pixels, g.heads, g.depth})) {
    return ShapeError(kOp, "value", "[N,S,heads,D]",
                      ToString({g.batch, g.pixels, g.heads, g.depth}), a.value);
  }
  if (g.depth == 0) {
    return Message("value must have at least 1 channel in each head, got shape " +
                   ToString(a.value));
  }
  if (ShapeDiffers(a.spatial_shapes, {g.levels, 2})) {
    return ShapeError(kOp, "spatial_shapes", "[levels,2]", ToString({g.levels, 2}),
                      a.spatial_shapes);
  }
  std::vector<int64_t> coordinates = g.samples_shape;
  coordinates.push_back(2);
  if (ShapeDiffers(locations, coordinates)) {
    return ShapeError(kOp, "sampling_locations", layouts.locations, ToString(coordinates),
                      locations);
  }
  if (ShapeDiffers(weights, g.samples_shape)) {
    return ShapeError(kOp, "attention_weights", layouts.weights, ToString(g.samples_shape),
                      weights);
  }
  const std::vector<int64_t> output = {g.batch, g.queries, Product(g.heads, g.depth)};
  if (a.grad_output && ShapeDiffers(grad_output, output)) {
    return ShapeError(kOp, "grad_output", "[N,Q,heads*D]", ToString(output), grad_output);
  }
  error = OutputError(kOp, output);
  if (!error.empty()) return error;
  return a.level_sizes ? FillMaps(a, &g) : "";
}

}  // namespace

Status Parse(const Arguments& arguments, Geometry* geometry) {
  std::string error = FillGeometry(arguments, geometry);
  if (error.empty()) return Status();
  return Status(Status::Code::kInvalidArgument, std::move(error));
}

}  // namespace tf_deformable::deformable_attention
