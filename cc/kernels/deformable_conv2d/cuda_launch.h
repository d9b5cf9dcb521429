// How the CUDA kernels of the deformable convolution are launched: what all passes share.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_LAUNCH_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_LAUNCH_H_

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/base/status.h"
#include "kernels/cuda/options.h"
#include "kernels/deformable_conv2d/cuda_convolution.h"
#include "kernels/deformable_conv2d/cuda_tiles.h"

namespace tf_deformable::deformable_conv2d::cuda {

// Cuts the output into tiles of `size` pixels and returns how many. Square ones read fewer
// different pixels, if not too much of them lies outside.
inline int64_t ChooseTiles(int size, Convolution* c) {
  constexpr double kMostWaste = 1.1;
  const int64_t pixels = c->pixels(), images = pixels / c->output_size();
  c->tile_rows = c->tile_columns = 0;
  if (pixels % c->output_size() != 0) return CeilDiv(pixels, size);
  for (int columns = 8; columns <= size / 2; columns *= 2) {
    const int64_t down = CeilDiv(c->output_height, size / columns);
    const int64_t across = CeilDiv(c->output_width, columns);
    if (down * across * size <= kMostWaste * c->output_size()) {
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
  const int64_t images = c.last_pixel / c.output_size();
  if (images * image_vectors + 2 * row_vectors > std::numeric_limits<int32_t>::max()) return false;
  return c.segment % lanes == 0 && (depthwise || c.group_filters % lanes == 0);
}

// Into how many splits, at most `most`, the `units` of work of each of so many blocks are cut, so
// that the device's places for blocks are busy, and do not wait long for the last ones. To begin
// costs a block about as much as a unit.
inline int32_t ChooseSplits(int64_t blocks, int64_t units, int64_t most, int64_t places) {
  constexpr int64_t kMostWaves = 16;  // when places are taken that often, nobody waits long
  int32_t best = 1;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t splits = 1; splits <= std::min(units, most); ++splits) {
    const int64_t waves = CeilDiv(blocks * splits, places);
    const int64_t time = waves * (CeilDiv(units, splits) + 1);
    if (time < least) {
      least = time;
      best = splits;
    }
    if (waves > kMostWaves) break;
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

// Bounds of what the workspace holds: ds of the pixels of a step, the lists of samples, and
// gradients of the filters that wait to be added up.
inline constexpr int64_t kColumnsBytes = 48 << 20;
inline constexpr int64_t kListsBytes = 12 << 20;
inline constexpr int64_t kFiltersPartialsBytes = 48 << 20;

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_LAUNCH_H_
