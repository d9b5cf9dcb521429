// How the CUDA kernels of the deformable convolution are launched: what all passes share.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_LAUNCH_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_LAUNCH_H_

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/base/status.h"
#include "kernels/cuda/options.h"
#include "kernels/deformable_conv2d/cuda_tiles.h"
#include "kernels/deformable_conv2d/geometry.h"

namespace tf_deformable::deformable_conv2d::cuda {

inline constexpr char kOp[] = "deformable_conv2d";

// Fills `convolution`, or says what does not fit into the kernels' 32-bit numbers. The number of
// elements of a tensor has no such limit.
inline Status MakeConvolution(const Geometry& g, Convolution* convolution) {
  constexpr int64_t kMost = 1 << 30;
  constexpr int64_t kMostPixels = 1 << 24;  // along an axis: float counts so far
  const int64_t reach_y = g.output_height * g.stride_y + g.kernel_height * g.dilation_y + g.pad_top;
  const int64_t reach_x = g.output_width * g.stride_x + g.kernel_width * g.dilation_x + g.pad_left;
  const bool fits = g.height <= kMostPixels && g.width <= kMostPixels &&
                    g.height * g.width <= kMost && g.output_size() <= kMost && g.batch <= kMost &&
                    reach_y <= kMost && reach_x <= kMost && g.taps() <= kMost &&
                    g.channels <= kMost && g.filters <= kMost && g.offset_groups <= kMost;
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

// Cuts the output into tiles of `size` pixels and returns how many. Square ones read fewer
// different pixels, if not too much of them lies outside.
inline int64_t ChooseTiles(int size, Convolution* c) {
  constexpr double kMostWaste = 1.1;
  const int64_t image_size = static_cast<int64_t>(c->output_height) * c->output_width;
  const int64_t pixels = c->last_pixel - c->first_pixel, images = pixels / image_size;
  c->tile_rows = c->tile_columns = 0;
  if (pixels % image_size != 0) return CeilDiv(pixels, size);
  for (int columns = 8; columns <= size / 2; columns *= 2) {
    const int64_t down = CeilDiv(c->output_height, size / columns);
    const int64_t across = CeilDiv(c->output_width, columns);
    if (down * across * size <= kMostWaste * c->output_height * c->output_width) {
      c->tile_rows = size / columns;
      c->tile_columns = columns;
      return images * down * across;
    }
  }
  return CeilDiv(pixels, size);
}

// Whether runs of channels and filters can be read `lanes` elements, 16 bytes, at a time.
inline bool IsVectorised(const Convolution& c, bool depthwise, int lanes,
                         std::initializer_list<const void*> tensors) {
  for (const void* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return false;
  }
  // What addresses count with 32 bits, pixels just off the map included.
  const int64_t image_vectors = static_cast<int64_t>(c.height) * c.width * c.channels / lanes;
  const int64_t row_vectors = static_cast<int64_t>(c.width) * c.channels / lanes;
  const int64_t output_size = static_cast<int64_t>(c.output_height) * c.output_width;
  const int64_t images = c.last_pixel / output_size;
  if (images * image_vectors + 2 * row_vectors > std::numeric_limits<int32_t>::max()) return false;
  return c.segment % lanes == 0 && (depthwise || c.group_filters % lanes == 0);
}

// Shares out a segment's chunks so that there are enough blocks to keep all multiprocessors busy.
inline ChannelRanges ChooseRanges(const Convolution& c, int chunk, int64_t tiles,
                                  int multiprocessors) {
  constexpr int64_t kBlocksWanted = 4;  // on each multiprocessor, two of which run at once
  const int64_t segments = c.channels / c.segment, chunks = CeilDiv(c.segment, chunk);
  const int64_t wanted = CeilDiv(kBlocksWanted * multiprocessors, tiles * segments);
  ChannelRanges ranges;
  ranges.chunks_per_range = CeilDiv(chunks, std::min(wanted, chunks));
  ranges.ranges_per_segment = CeilDiv(chunks, ranges.chunks_per_range);
  ranges.ranges = ranges.ranges_per_segment * segments;
  return ranges;
}

// Into how many parts, at most `most`, the `units` of work of each of so many blocks are cut, so
// that the device's places for blocks are busy, and do not wait long for the last ones. To begin
// costs a block about as much as a unit.
inline int32_t ChooseSplits(int64_t blocks, int64_t units, int64_t most, int64_t places) {
  constexpr int64_t kMostTurns = 16;  // when places are taken that often, nobody waits long
  int32_t best = 1;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t splits = 1; splits <= std::min(units, most); ++splits) {
    const int64_t turns = CeilDiv(blocks * splits, places);
    const int64_t time = turns * (CeilDiv(units, splits) + 1);
    if (time < least) {
      least = time;
      best = splits;
    }
    if (turns > kMostTurns) break;
  }
  return best;
}

// Whether products are computed with plain multiply-adds.
template <typename T>
bool UsesFma(const CudaOptions& options) {
  return std::is_same_v<T, double> || (std::is_same_v<T, float> && !options.tensor_float_32);
}

// Calls function(Tile) with the tile of that kind: multiplied by plain multiply-adds or on the
// tensor cores, read 16 bytes at a time or not.
template <typename T, int kRows, int kColumns, int kWarpRows, int kWarpColumns, typename F>
Status WithTile(bool uses_fma, bool vectorised, const F& function) {
  if constexpr (sizeof(T) >= 4) {
    if (uses_fma) {
      if (vectorised) {
        return function(Tile<T, true, kRows, kColumns, kWarpRows, kWarpColumns, true>());
      }
      return function(Tile<T, true, kRows, kColumns, kWarpRows, kWarpColumns, false>());
    }
  }
  if constexpr (!std::is_same_v<T, double>) {
    if (vectorised) {
      return function(Tile<T, false, kRows, kColumns, kWarpRows, kWarpColumns, true>());
    }
    return function(Tile<T, false, kRows, kColumns, kWarpRows, kWarpColumns, false>());
  }
  return Status();
}

// Bounds of the parts of the workspace: ds of the pixels of a step, the lists of samples, and
// gradients of the filters that wait to be added up.
inline constexpr int64_t kColumnsBytes = 48 << 20;
inline constexpr int64_t kListsBytes = 12 << 20;
inline constexpr int64_t kFiltersPartialsBytes = 48 << 20;

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_LAUNCH_H_
