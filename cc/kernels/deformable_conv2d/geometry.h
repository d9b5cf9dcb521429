// Geometry and validation of the deformable convolution: parsed once from shapes and attributes,
// read by the shape functions, by every kernel adapter and by the kernels themselves.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_GEOMETRY_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_GEOMETRY_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/base/host_device.h"
#include "kernels/base/shape.h"
#include "kernels/base/status.h"

namespace tf_deformable::deformable_conv2d {

enum class Padding { kSame, kValid, kExplicit };

// Everything that determines the geometry, as the caller states it; shapes may be partly unknown.
struct Arguments {
  const char* op = "deformable_conv2d";  // begins messages

  Shape inputs;                      // [N, H, W, C]
  Shape filters;                     // [kh, kw, C/groups, F]
  Shape offsets;                     // [N, Ho, Wo, G*kh*kw*2]
  std::optional<Shape> mask;         // [N, Ho, Wo, G*kh*kw]
  std::optional<Shape> bias;         // [F]
  std::optional<Shape> grad_output;  // [N, Ho, Wo, F]

  std::vector<int64_t> strides;    // y, x
  std::vector<int64_t> dilations;  // y, x
  Padding padding = Padding::kSame;
  std::vector<int64_t> explicit_paddings;  // top, bottom, left, right, for Padding::kExplicit
};

// A dimension that does not follow from what is known is kUnknown; kernels are only ever given a
// fully known geometry. Those for CUDA get a 32-bit copy of it (cuda_convolution.h).
struct Geometry {
  int64_t batch = kUnknown;
  int64_t height = kUnknown, width = kUnknown, channels = kUnknown;
  int64_t kernel_height = kUnknown, kernel_width = kUnknown;
  int64_t filters = kUnknown;  // F, output channels
  int64_t groups = kUnknown;
  int64_t offset_groups = kUnknown;  // G
  int64_t output_height = kUnknown, output_width = kUnknown;
  int64_t stride_y = 1, stride_x = 1;
  int64_t dilation_y = 1, dilation_x = 1;
  int64_t pad_top = 0, pad_left = 0;
  // Whether positions reach beyond the integers that float counts: plans for the CPU set it.
  bool reaches_far = false;

  // Always inlined: the kernels' translation units, each for its own instruction set, must not
  // share a compiled copy.
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t taps() const { return kernel_height * kernel_width; }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t group_channels() const { return channels / groups; }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t group_filters() const { return filters / groups; }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t offset_group_channels() const {
    return channels / offset_groups;
  }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t output_size() const {
    return output_height * output_width;
  }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t output_pixels() const {
    return batch * output_size();
  }
  // Each of several channels is a group of its own, with one filter.
  TF_DEFORMABLE_HOST_DEVICE constexpr bool is_depthwise() const {
    return groups > 1 && group_channels() == 1 && group_filters() == 1;
  }
};

// Fills `geometry` with all that follows from `arguments`. The message of an error names the
// argument, the rule and what was got.
[[nodiscard]] Status Parse(const Arguments& arguments, Geometry* geometry);

// What the gradients of the branch read beside what the branch reads.
struct BranchGradientArguments {
  Shape grad_offsets;                    // [N, Ho, Wo, G*kh*kw*2]
  std::optional<Shape> mask, grad_mask;  // [N, Ho, Wo, G*kh*kw]
};

// The same of the branch that predicts offsets and, if has_mask, the mask: of its arguments inputs,
// filters [kh,kw,C,D] and bias [D], D = G*kh*kw*2 or G*kh*kw*3. `gradient` is null in the forward
// pass.
[[nodiscard]] Status ParseBranch(const Arguments& arguments, bool has_mask,
                                 const BranchGradientArguments* gradient, Geometry* geometry);

}  // namespace tf_deformable::deformable_conv2d

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_GEOMETRY_H_
