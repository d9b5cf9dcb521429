// What the CPU drivers (cpu_*_plan.cc) and the kernels compiled once per instruction set
// (cpu_kernels.inc) agree on: plain data and function pointers, no code but what is always inlined.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_KERNELS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_KERNELS_H_

#include <cstdint>

#include "kernels/base/float_types.h"
#include "kernels/base/host_device.h"
#include "kernels/base/integers.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"
#include "kernels/sampling/bilinear.h"

namespace tf_deformable::deformable_conv2d::cpu {

// The bytes that a tile keeps of an output pixel, whole vectors of which are a PixelVector.
template <typename A>
inline constexpr int64_t kPixelBytes = 3 * sizeof(int64_t) + 2 * sizeof(A);

// A sampled panel has at most so many columns.
inline constexpr int64_t kLargestPanel = 256;

// A unit that adds up takes so many pixels of the offsets' gradient, or elements of the inputs'.
inline constexpr int64_t kReducedPixels = 512;
inline constexpr int64_t kReducedElements = 1 << 16;

// Output pixels are numbered 0 .. N*Ho*Wo-1 in an order of the kernels' own, image by image (see
// PixelWalk).

template <typename T>
struct ForwardJob {
  using A = ComputeType<T>;
  Geometry geometry;
  bool depthwise;
  ForwardTensors<T> tensors;
  int64_t depth, panels;  // taps * group_channels, and the sampled panels that they make
  // The slab: the filters that are packed at a time.
  int64_t first_group, last_group;
  int64_t first_filter, last_filter;
  A* packed_filters;  // [groups of the slab, packed_group_size]: panels [taps * group_channels,
                      // columns]
  int64_t packed_group_size;
  // Instead of the slab, each worker packs for itself what a sampled panel is multiplied by.
  bool packs_per_panel;
  int64_t tile_pixels;
  // Workspace of one worker, as element offsets from its start.
  int64_t panel_at, panel_row;  // sampled values [tile_pixels, panel_row]
  int64_t sums_at, sums_row;    // [tile_pixels, sums_row]
  int64_t panel_filters_at;     // of packed filters
  int64_t pixels_at;            // PixelVectors of a tile
  // SampleVectors: of one vector of pixels and the columns of a panel, or, if all_samples, of all
  // pixels and columns. The latter is for several groups that share them, if they fit.
  int64_t samples_at;
  bool all_samples;
  // Few pixels: the sampled values of all panels of all groups, and the filters of a unit.
  bool few_pixels;
  A* sampled;  // [groups, panels, tile_pixels, panel_row]
  int64_t filters_per_block, filter_blocks;
  // Groups of few channels are sampled together, and a unit has some: so many, else 1. Their
  // sampled values in a panel are group_row apart.
  int64_t groups_together, group_row;
  // Depthwise: the samples of so many taps are worked out at a time, for one vector of pixels.
  int64_t taps_together;
};

template <typename T>
struct FiltersGradientJob {
  using A = ComputeType<T>;
  Geometry geometry;
  bool depthwise;
  BackwardTensors<T> tensors;
  // A unit is a split of the pixels, and of the gradient of one group a block of the rows
  // [taps * group_channels] and of the columns, the group's filters.
  int64_t pixels_per_split, splits;
  int64_t rows_per_block, row_blocks;
  int64_t filters_per_block, filter_blocks;
  // Of groups that are sampled together, a unit has one block each: see ForwardJob.
  int64_t groups_together, group_row;
  int64_t tile_pixels;
  A* sums;  // [units, groups_together, sums_size]; only used if there is more than one split
  int64_t sums_row, sums_size;
  // Workspace of one worker, as element offsets from its start.
  int64_t panel_at, panel_row;    // sampled values [tile_pixels, panel_row]
  int64_t packed_at;              // packed grad_output [tile_pixels, sums_row]
  int64_t sums_at;                // [groups_together, sums_size], if there is one split
  int64_t pixels_at, samples_at;  // PixelVectors of a tile, SampleVectors of a panel's columns
};

// A channel block: channels whose input gradient a unit owns. They share an offset group, and have
// one group, a part of one, or some whole groups from `group` on.
struct ChannelBlock {
  int64_t first, width;
  int64_t group, groups, offset_group;
  int64_t packed_at;  // where its packed filters begin, in elements
};

template <typename T>
struct InputsGradientJob {
  using A = ComputeType<T>;
  Geometry geometry;
  bool depthwise;
  BackwardTensors<T> tensors;
  const ChannelBlock* blocks;
  int64_t num_blocks;
  // The part, whose sums are held at a time: some images and some blocks, of which sums_channels
  // begin at first_channel.
  int64_t first_image, last_image;
  int64_t first_part_block, last_part_block;
  int64_t first_channel, sums_channels;
  // The step has these pixels of the part's images.
  int64_t first_pixel, last_pixel;
  // The filters that are multiplied by: some blocks of the part and some taps.
  int64_t first_block, last_block, first_tap, last_tap;
  A* packed_filters;    // per block, tap and group: panels [group_filters, width / groups]
  int64_t packed_from;  // what packed_filters begin with, as packed_at of blocks
  // Where images and blocks are too few for the threads, the pixels are cut into splits, each with
  // sums of its own.
  int64_t splits;
  A* grad_inputs;      // [images, H, W, sums_channels]: those of the first split, in the end of all
  A* split_sums;       // [splits - 1, images, H, W, sums_channels]: those of the others
  int64_t split_size;  // in elements
  // Offset and mask gradients of each block: [images, blocks of the part, pixels of the step, taps,
  // 3] (dy, dx, mask).
  A* partials;
  // Their sums over an offset group's blocks so far, where it goes on in the next part, which then
  // has one image: [Ho * Wo, taps, 3].
  A* unfinished;
  int64_t tile_pixels;
  int64_t upstream_at, upstream_row;  // grad_output [tile_pixels, upstream_row]
  int64_t columns_at, columns_row;    // gradient of the sampled values [tile_pixels, columns_row]
  int64_t discard_at;                 // takes what is scattered off the map
  int64_t pixels_at, samples_at;      // PixelVectors of a tile, a SampleVector
};

// --- The branch ----------------------------------------------------------------------------------

// One axis of a convolution on a regular grid: its result at first + i *
// results_apart, i in [0, size),
// reads with its t-th tap, t in [0, taps), what the source has at i * stride + origin + t *
// dilation. The tap is the one numbered first_tap + t * taps_apart among those of the filters.
struct GridAxis {
  int64_t size, first, results_apart;
  int64_t stride, origin, source_size;
  int64_t taps, dilation, first_tap, taps_apart;  // dilation is positive
};

// A convolution on a regular grid, cut into tiles of some rows of results, or of some of one row.
//
// What a tile reads is copied, a chunk of the channels at a time: for each row of taps the source's
// rows, with zeros around them, so that all taps of the row read the same copy, each a little
// further on. The results of a tile are numbered as their first taps lie there: of row_pitch from
// one row to the next, width are results, and the others are computed for nothing. Where these
// would be many, each tap has a copy of its own (shares_rows is false).
struct Grid {
  GridAxis y, x;
  int64_t images;
  int64_t channels, chunk_channels;  // of the source, and of a copy at most
  bool shares_rows;
  int64_t rows, width, row_pitch;   // of a tile
  int64_t row_tiles, column_tiles;  // of the whole

  // Always inlined, as those of Geometry.
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t taps() const { return y.taps * x.taps; }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t tiles() const { return row_tiles * column_tiles; }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t chunks() const {
    return CeilDiv(channels, chunk_channels);
  }
  // Of a row of taps, those that have a copy in common, and those of them that lie side by side.
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t copied_taps() const {
    return shares_rows ? x.taps : 1;
  }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t product_taps() const {
    return shares_rows && x.dilation == 1 ? x.taps : 1;
  }
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t products() const {
    return chunks() * taps() / product_taps();
  }
  // Pixels of a copy from one result to the next.
  TF_DEFORMABLE_HOST_DEVICE constexpr int64_t pixels_apart() const {
    return shares_rows ? x.stride : 1;
  }
};

// Such a convolution, as a product of copies with packed filters. Forward: of the inputs. Of the
// inputs' gradient: of the gradient of what the filters gave, once for all pixels at which the same
// taps arrive: with strides there are several such grids.
template <typename T, typename Tensors>
struct GridJob {
  using A = ComputeType<T>;
  Geometry geometry;
  Tensors tensors;
  Grid grid;
  int64_t depth;  // taps * channels of the source
  // The slab: the columns that are packed at a time. Of the last of them, dot_columns that do not
  // fill a vector are packed as rows [depth] behind the panels.
  int64_t first_column, last_column;
  int64_t packed_columns, dot_columns;
  A* packed_filters;  // rows ordered as products take them: (chunk, tap, channel of the chunk)
  // Instead of the slab, each worker packs for itself what a copy is multiplied by.
  bool packs_per_product;
  int64_t tile_results;  // those of a tile, in whole register blocks
  // Workspace of one worker, as element offsets from its start.
  int64_t copy_at;
  int64_t sums_at, sums_row;   // [tile_results, sums_row]
  int64_t product_filters_at;  // of packed filters
};
template <typename T>
using BranchJob = GridJob<T, BranchTensors<T>>;
template <typename T>
using BranchInputsJob = GridJob<T, BranchGradientTensors<T>>;

// The gradients of filters and bias.
template <typename T>
struct BranchFiltersJob {
  using A = ComputeType<T>;
  Geometry geometry;
  BranchGradientTensors<T> tensors;
  Grid grid;  // that of the forward pass
  // A unit is a split of the tiles, and a block of the filters and of the products. Its sums are
  // [filters_per_block, sums_row], those of the bias [filters_per_block] behind them.
  int64_t tiles_per_split, splits;
  int64_t products_per_block, product_blocks;
  int64_t filters_per_block, filter_blocks;
  int64_t product_columns;  // of a product in sums_row, whole vectors
  A* sums;  // [blocks, splits, sums_size]; only used if there is more than one split
  int64_t sums_row, sums_size;
  // Workspace of one worker, as element offsets from its start.
  int64_t copy_at;
  int64_t upstream_at, upstream_row;  // gradient of what the filters gave [results, upstream_row]
  int64_t sums_at;                    // [sums_size], if there is one split
};

template <typename T>
struct Kernels {
  using A = ComputeType<T>;
  // Units of work; each writes memory of its own.
  void (*pack_filters)(const ForwardJob<T>& job, int64_t unit);
  void (*forward)(const ForwardJob<T>& job, int64_t tile, A* workspace);
  void (*sample_few_pixels)(const ForwardJob<T>& job, int64_t unit, A* workspace);
  void (*multiply_few_pixels)(const ForwardJob<T>& job, int64_t unit, A* workspace);
  void (*forward_together)(const ForwardJob<T>& job, int64_t unit, A* workspace);
  void (*depthwise_forward)(const ForwardJob<T>& job, int64_t tile, A* workspace);
  void (*filters_gradient)(const FiltersGradientJob<T>& job, int64_t unit, A* workspace);
  void (*filters_gradient_together)(const FiltersGradientJob<T>& job, int64_t unit, A* workspace);
  void (*depthwise_filters_gradient)(const FiltersGradientJob<T>& job, int64_t unit, A* workspace);
  void (*reduce_splits)(const FiltersGradientJob<T>& job, int64_t block);
  void (*pack_transposed_filters)(const InputsGradientJob<T>& job, int64_t block);
  void (*inputs_gradient)(const InputsGradientJob<T>& job, int64_t unit, A* workspace);
  void (*depthwise_inputs_gradient)(const InputsGradientJob<T>& job, int64_t unit, A* workspace);
  void (*reduce_partials)(const InputsGradientJob<T>& job, int64_t unit);
  void (*add_splits)(const InputsGradientJob<T>& job, int64_t unit);
  void (*round)(const A* from, int64_t size, T* to);
  void (*pack_branch_filters)(const BranchJob<T>& job, int64_t product);
  void (*branch)(const BranchJob<T>& job, int64_t tile, A* workspace);
  void (*branch_filters_gradient)(const BranchFiltersJob<T>& job, int64_t unit, A* workspace);
  void (*reduce_branch_filters)(const BranchFiltersJob<T>& job, int64_t block);
  void (*pack_transposed_branch_filters)(const BranchInputsJob<T>& job, int64_t product);
  void (*branch_inputs_gradient)(const BranchInputsJob<T>& job, int64_t tile, A* workspace);

  int64_t lanes;          // a vector has so many elements of A; packed columns are a multiple of it
  int64_t block_rows;     // of a register block; the height of a tile is best a multiple of it
  int64_t panel_columns;  // of packed filters; the width of a slab is best a multiple of it
};

TF_DEFORMABLE_DECLARE_KERNEL_TABLES(Kernels, kKernels)

}  // namespace tf_deformable::deformable_conv2d::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_KERNELS_H_
