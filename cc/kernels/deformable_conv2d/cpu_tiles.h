// What the CPU drivers of this folder share: the bounds of tiles, how a tile is chosen,
// and what of a geometry more than one of them needs.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_TILES_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_TILES_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/driver.h"
#include "kernels/deformable_conv2d/cpu_kernels.h"

namespace tf_deformable::deformable_conv2d::cpu {

// Where these come from is in cc/kernels/README.md. Those in bytes bound arrays of the workspace.

// A slab of packed filters has at most so many bytes.
inline constexpr int64_t kPackedBytes = 10 << 20;
// Where a worker packs filters for itself, panel by panel, those of a panel have at most so many.
inline constexpr int64_t kPanelFiltersBytes = 512 << 10;
// The samples of a tile have at most so many, if they are worked out for all of it at once.
inline constexpr int64_t kSamplesBytes = 512 << 10;
// The samples of a tile that is only one register block high may have more.
inline constexpr int64_t kMostSamplesBytes = 2 << 20;
// The sampled values of few pixels, all of them, have at most so many.
inline constexpr int64_t kFewPixelsBytes = 4 << 20;
// The sums of a tile, or of a block of the filters' gradient, have at most so many, and stay in the
// second-level cache.
inline constexpr int64_t kSumsBytes = 512 << 10;
// The panel of groups that are sampled together stays there, too, if a tile is not too high.
inline constexpr int64_t kPanelBytes = 144 << 10;
// Gradients that wait to be added up have at most so many.
inline constexpr int64_t kPartialsBytes = 4 << 20;
// The inputs' gradients of all splits but the first have at most so many.
inline constexpr int64_t kSplitsBytes = 4 << 20;

// A tile is so many register blocks high, if it fits.
inline constexpr int64_t kTileBlocks = 16;
// A tile is at least so many register blocks high, if that leaves tiles for some threads.
inline constexpr int64_t kFewestTileBlocks = 4;
// A tile of the inputs' gradient of a depthwise convolution has so many vectors of pixels,
inline constexpr int64_t kDepthwiseTileVectors = 4;
// and forward the samples are worked out for so many taps at a time.
inline constexpr int64_t kTapsTogether = 32;
// A split of the inputs' gradient has at least so many tiles, or to add it up would take too long.
inline constexpr int64_t kSplitTiles = 8;
// So many units keep some threads busy.
inline constexpr int64_t kUnitsWanted = 8;

template <typename T>
const Kernels<T>& TableKernels() {
  return SelectedKernels<T>(TF_DEFORMABLE_KERNEL_TABLES(kKernels));
}

// The elements from one row of a panel to the next. Rows are read side by side: a stride that is no
// multiple of a page keeps them out of each other's cache sets.
template <typename A>
int64_t PanelRow(int64_t columns) {
  return RoundUp(columns, kWorkspaceAlignment / sizeof(A)) + kWorkspaceAlignment / sizeof(A);
}

// The pixels of a tile: kTileBlocks register blocks; fewer if their samples or their sums would not
// fit; less than one block if even its sums would not.
template <typename T>
int64_t TilePixels(const Kernels<T>& kernels, int64_t pixels, int64_t samples_per_pixel,
                   int64_t sums_per_pixel) {
  using A = ComputeType<T>;
  const int64_t rows = kernels.block_rows;
  int64_t tile = rows * kTileBlocks;
  tile = std::min<int64_t>(tile, kSamplesBytes / (samples_per_pixel * kSampleBytes<A>));
  tile = std::max(tile / rows * rows, rows);
  const int64_t summed = std::max<int64_t>(kSumsBytes / (sums_per_pixel * sizeof(A)), 1);
  if (tile > summed) tile = summed < rows ? summed : summed / rows * rows;
  return std::min(tile, std::max<int64_t>(pixels, 1));
}

// The samples that a panel's columns read, for one vector of pixels: no more than it has columns.
inline int64_t PanelSamples(const Geometry& g, int64_t lanes) {
  return std::min(g.offset_groups * g.taps(), kLargestPanel) * lanes;
}

// Groups of few channels are sampled together: as many as a panel has room for, beside a tile of a
// few register blocks.
struct Together {
  int64_t groups = 1;  // a divisor of all
  int64_t group_row = 0, panel_row = 0;
  int64_t tile_pixels = 0;  // at most

  template <typename T>
  Together(const Kernels<T>& kernels, const Geometry& g) {
    using A = ComputeType<T>;
    // They share samples only if they have their offsets in common.
    if (g.offset_group_channels() == g.group_channels()) return;
    if (g.offset_group_channels() % g.group_channels() != 0) return;
    const int64_t depth = g.taps() * g.group_channels(), rows = kernels.block_rows;
    // Behind the columns of a group lies what its last vector has too much.
    group_row = RoundUp(depth + kernels.lanes - 1, kernels.lanes);
    const int64_t panel_size = kPanelBytes / static_cast<int64_t>(sizeof(A));
    groups = std::min({panel_size / (2 * rows) / group_row,
                       kLargestPanel / std::max(g.group_channels(), g.group_filters()), g.groups});
    while (groups > 1 && g.groups % groups != 0) --groups;
    groups = std::max<int64_t>(groups, 1);
    panel_row = PanelRow<A>(groups * group_row);
    tile_pixels = std::max<int64_t>(panel_size / panel_row / rows, 1) * rows;
  }
};

// The geometry that plans and kernels are given: to them, a depthwise convolution has one group,
// and there are no images where neither inputs nor output have a pixel. Tensors without elements
// may have any other sizes: what is made of those would overflow, or be worked through.
inline Geometry KernelGeometry(const Geometry& geometry) {
  Geometry g = geometry;
  if (geometry.is_depthwise()) g.groups = 1;
  if (g.height == 0 || g.width == 0) g.height = g.width = 0;
  if (g.output_pixels() == 0 && g.height == 0) g.batch = 0;
  if (g.batch == 0) g.height = g.width = g.output_height = g.output_width = 0;
  g.reaches_far =
      std::max({g.output_height * g.stride_y, g.output_width * g.stride_x, g.pad_top, g.pad_left,
                g.kernel_height * g.dilation_y, g.kernel_width * g.dilation_x}) > kExactAsFloat;
  return g;
}

}  // namespace tf_deformable::deformable_conv2d::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_TILES_H_
