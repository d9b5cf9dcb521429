// Geometry and validation of the RoI pooling family: parsed once from shapes and attributes, read
// by the shape functions, by every kernel adapter and by the kernels themselves.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_GEOMETRY_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_GEOMETRY_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/base/host_device.h"
#include "kernels/base/shape.h"
#include "kernels/base/status.h"

namespace tf_deformable::roi_pool {

// Everything that determines the geometry, as the caller states it; shapes may be partly unknown.
struct Arguments {
  Shape inputs;                      // [N, H, W, k*k*D]
  Shape boxes;                       // [R, 4]: y1, x1, y2, x2
  Shape box_indices;                 // [R]
  std::optional<Shape> offsets;      // [R, part_h, part_w, classes, 2]: dy, dx
  std::optional<Shape> mask;         // [R, ph, pw]
  std::optional<Shape> grad_output;  // [R, ph, pw, D]

  std::vector<int64_t> output_size;  // ph, pw
  int64_t group_size = 1;            // k
  float spatial_scale = 1;
  int64_t samples_per_bin = 4;
  float gamma = 0.1f;
  bool aligned = false;
};

// Plain data, so that it can be handed to a GPU kernel by value. A dimension that does not follow
// from what is known is kUnknown; kernels are only ever given a fully known geometry.
struct Geometry {
  int64_t batch = kUnknown;
  int64_t height = kUnknown, width = kUnknown, channels = kUnknown;
  int64_t boxes = kUnknown;
  int64_t pooled_height = kUnknown, pooled_width = kUnknown;
  int64_t group_size = 1;
  int64_t depth = kUnknown;  // D, output channels
  int64_t part_height = 1, part_width = 1, classes = 1;
  int64_t samples_per_bin = 4;  // 0: as many as the bin has pixels
  float spatial_scale = 1;
  float gamma = 0;
  bool aligned = false;

  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t bins() const { return pooled_height * pooled_width; }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t class_depth() const { return depth / classes; }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t offsets_per_box() const {
    return part_height * part_width * classes * 2;
  }
};

// The function that was called, for messages. Position-sensitive pooling of one map is plain
// pooling, and called so.
const char* OperatorName(int64_t group_size);

// Fills `geometry` with all that follows from `arguments`. The message of an error names the
// argument, the rule and what was got.
[[nodiscard]] Status Parse(const Arguments& arguments, Geometry* geometry);

// Checks every index of a box: -1 (padding) or in [0, batch).
[[nodiscard]] Status CheckBoxIndices(const Geometry& geometry, const int32_t* box_indices);

}  // namespace tf_deformable::roi_pool

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_GEOMETRY_H_
