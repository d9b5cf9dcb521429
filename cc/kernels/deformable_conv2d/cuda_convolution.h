// The geometry as the CUDA kernels read it. No header of CUDA is included.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_CONVOLUTION_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_CONVOLUTION_H_

#include <cstdint>
#include <numeric>
#include <string>

#include "kernels/base/float_types.h"
#include "kernels/base/host_device.h"
#include "kernels/base/shape.h"
#include "kernels/base/status.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/deformable_conv2d/geometry.h"

namespace tf_deformable::deformable_conv2d::cuda {

inline constexpr char kOp[] = "deformable_conv2d";

// In 32 bits: MakeConvolution has seen to it that the numbers fit.
struct Convolution {
  int32_t height, width, channels, filters;
  int32_t output_height, output_width;
  int64_t first_pixel, last_pixel;  // of the output, of all images: those of this launch
  int32_t kernel_width, taps;
  int32_t stride_y, stride_x, dilation_y, dilation_x, pad_top, pad_left;
  int32_t offset_groups;
  int32_t group_channels, group_filters, offset_group_channels;
  int32_t segment;  // how many channels a segment has
  // A tile has tile_rows x tile_columns output pixels of one image. If tile_columns is 0, it has so
  // many that follow each other, whatever their images.
  int32_t tile_rows, tile_columns;

  TF_DEFORMABLE_HOST_DEVICE int32_t groups() const { return channels / group_channels; }
  TF_DEFORMABLE_HOST_DEVICE int32_t segments() const { return channels / segment; }
  TF_DEFORMABLE_HOST_DEVICE int32_t group_segments() const { return group_channels / segment; }
  TF_DEFORMABLE_HOST_DEVICE int64_t output_size() const {
    return static_cast<int64_t>(output_height) * output_width;
  }
  TF_DEFORMABLE_HOST_DEVICE int64_t pixels() const { return last_pixel - first_pixel; }
};

// Fills `convolution`, or says what does not fit into the kernels' 32-bit numbers. The number of
// elements of a tensor has no such limit.
[[nodiscard]] inline Status MakeConvolution(const Geometry& g, Convolution* convolution) {
  using tf_deformable::cuda::kMostIndex;
  const int64_t reach_y = g.output_height * g.stride_y + g.kernel_height * g.dilation_y + g.pad_top;
  const int64_t reach_x = g.output_width * g.stride_x + g.kernel_width * g.dilation_x + g.pad_left;
  const bool fits = g.height <= kExactAsFloat && g.width <= kExactAsFloat &&
                    g.height * g.width <= kMostIndex && g.output_size() <= kMostIndex &&
                    g.batch <= kMostIndex && reach_y <= kMostIndex && reach_x <= kMostIndex &&
                    g.taps() <= kMostIndex && g.channels <= kMostIndex && g.filters <= kMostIndex &&
                    g.offset_groups <= kMostIndex;
  if (!fits) {
    return Status(Status::Code::kTooLarge,
                  std::string(kOp) +
                      ": a GPU takes images, outputs and strides of at most 2^30 pixels, and 2^24 "
                      "along an axis, got images of " +
                      ToString({g.height, g.width}) + " and an output of " +
                      ToString({g.output_height, g.output_width}));
  }
  Convolution& c = *convolution;
  c.height = g.height;
  c.width = g.width;
  c.channels = g.channels;
  c.filters = g.filters;
  c.output_height = g.output_height;
  c.output_width = g.output_width;
  c.first_pixel = 0;
  c.last_pixel = g.output_pixels();
  c.kernel_width = g.kernel_width;
  c.taps = g.taps();
  c.stride_y = g.stride_y;
  c.stride_x = g.stride_x;
  c.dilation_y = g.dilation_y;
  c.dilation_x = g.dilation_x;
  c.pad_top = g.pad_top;
  c.pad_left = g.pad_left;
  c.offset_groups = g.offset_groups;
  c.group_channels = g.group_channels();
  c.group_filters = g.group_filters();
  c.offset_group_channels = g.offset_group_channels();
  c.segment = g.is_depthwise() ? g.offset_group_channels()
                               : std::gcd(g.group_channels(), g.offset_group_channels());
  c.tile_rows = c.tile_columns = 0;
  return Status();
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_CONVOLUTION_H_
