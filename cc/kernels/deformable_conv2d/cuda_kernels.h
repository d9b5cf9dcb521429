// CUDA kernels of the deformable convolution.
//
//   y[p,f]         = bias[f] + sum_k sum_c filters[k,c,f] * s[p,k,c]
//   s[p,k,c]       = mask[p,k] * sum_r G(r,q) x[r,c],  q = p*stride - pad + k*dilation +
//   offset[p,k] dfilters[k,c,f] = sum_p s[p,k,c] * dy[p,f] ds[p,k,c]      = sum_f filters[k,c,f] *
//   dy[p,f], scattered to dx, dotted with x for doffset
//
// s and ds exist only as tiles in shared memory, between the sampling (scattering) on one side and
// the product on the other. Where a pixel samples is worked out once per (tap, offset group) and
// used for all channels. Channels are walked in chunks of 128 bytes and, within a chunk, all taps:
// these read nearly the same pixels, which are then in the first-level cache. While a chunk is
// multiplied, the loads of the next one are under way.
//
// Channels are cut into segments, the largest runs of which all lie in one group and in one offset
// group.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_KERNELS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_KERNELS_H_

#include <cstdint>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/primitives.h"
#include "kernels/cuda/product.h"
#include "kernels/deformable_conv2d/tensors.h"
#include "kernels/sampling/bilinear.h"

namespace tf_deformable::deformable_conv2d::cuda {

using namespace tf_deformable::cuda;

// The geometry as the kernels read it; the driver has checked that it fits.
struct Convolution {
  int32_t height, width, channels, filters;
  int32_t output_height, output_width;
  int64_t first_pixel, last_pixel;  // of the output, of all images: those of this launch
  int32_t kernel_width, taps;
  int32_t stride_y, stride_x, dilation_y, dilation_x, pad_top, pad_left;
  int32_t offset_groups;
  int32_t group_channels, group_filters, offset_group_channels;
  int32_t segment;  // channels
  // Output pixels go into tiles of tile_rows x tile_columns of one image; tile_columns == 0: of so
  // many in a row, whatever their images.
  int32_t tile_rows, tile_columns;
};

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kTapBlock = 9;      // taps whose sampling points are held at a time
inline constexpr int kChunkBytes = 128;  // of neighbouring channels

// --- Pixels --------------------------------------------------------------------------------------

struct TilePixel {
  int64_t pixel;  // of all images; -1: none
  int32_t image;
  int32_t y, x;  // in the inputs, of the first tap without its offset
};

TF_DEFORMABLE_DEVICE TilePixel MakeTilePixel(const Convolution& g, int64_t pixel) {
  if (pixel < g.first_pixel || pixel >= g.last_pixel) return {-1, 0, 0, 0};
  const int64_t size = static_cast<int64_t>(g.output_height) * g.output_width;
  const int32_t image = static_cast<int32_t>(pixel / size);
  const int32_t within = static_cast<int32_t>(pixel - image * size);
  const int32_t oy = within / g.output_width, ox = within % g.output_width;
  return {pixel, image, oy * g.stride_y - g.pad_top, ox * g.stride_x - g.pad_left};
}

// Output pixel `i` of a tile of `size`, or -1. Tiles are counted from the launch's first image, or
// from its first pixel if they are so many in a row.
TF_DEFORMABLE_DEVICE int64_t PixelOfTile(const Convolution& g, int64_t tile, int size, int i) {
  if (g.tile_columns == 0) return g.first_pixel + tile * size + i;
  const int32_t down = (g.output_height + g.tile_rows - 1) / g.tile_rows;
  const int32_t across = (g.output_width + g.tile_columns - 1) / g.tile_columns;
  const int64_t image_size = static_cast<int64_t>(g.output_height) * g.output_width;
  const int64_t image = tile / (static_cast<int64_t>(down) * across);
  const int32_t within = static_cast<int32_t>(tile - image * down * across);
  const int32_t oy = within / across * g.tile_rows + i / g.tile_columns;
  const int32_t ox = within % across * g.tile_columns + i % g.tile_columns;
  if (oy >= g.output_height || ox >= g.output_width) return -1;
  return (g.first_pixel / image_size + image) * image_size +
         static_cast<int64_t>(oy) * g.output_width + ox;
}

template <typename A>
struct Offset {
  A dy, dx, mask;
};

template <typename T>
TF_DEFORMABLE_DEVICE Offset<ComputeType<T>> LoadOffset(const Convolution& g,
                                                       const SamplingTensor<const T>& offsets,
                                                       const SamplingTensor<const T>& mask,
                                                       const TilePixel& p, int32_t offset_group,
                                                       int32_t tap) {
  using A = ComputeType<T>;
  if (p.pixel < 0) return {0, 0, 0};
  const int64_t at = (p.pixel * g.offset_groups + offset_group) * g.taps + tap;
  return {LoadSampling(offsets, 2 * at), LoadSampling(offsets, 2 * at + 1),
          mask ? LoadSampling(mask, at) : A{1}};
}

template <typename A>
TF_DEFORMABLE_DEVICE SamplingPoint<A> PointOf(const Convolution& g, const TilePixel& p, int32_t tap,
                                              const Offset<A>& offset) {
  if (p.pixel < 0) return {0, 0, 0, 0};
  const int32_t ky = tap / g.kernel_width, kx = tap - ky * g.kernel_width;
  return MakeSamplingPoint<A>(static_cast<A>(p.y + ky * g.dilation_y) + offset.dy,
                              static_cast<A>(p.x + kx * g.dilation_x) + offset.dx, g.height,
                              g.width, g.width);
}

// Pixel of the inputs, of all images, times 16, plus the bits of the corners on the map.
TF_DEFORMABLE_DEVICE int64_t PackCorners(const Convolution& g, int32_t image, int32_t pixel,
                                         uint32_t corners) {
  return (static_cast<int64_t>(image) * g.height * g.width + pixel) * 16 + corners;
}

// --- Sampling ------------------------------------------------------------------------------------

// What sampling reads of a SamplingPoint.
template <typename A>
struct alignas(8) WeightedCorners {
  A weight[4];
  int64_t packed;
};

template <typename A>
TF_DEFORMABLE_DEVICE WeightedCorners<A> MakeWeightedCorners(const Convolution& g,
                                                            const TilePixel& p, int32_t tap,
                                                            const Offset<A>& offset) {
  const SamplingPoint<A> point = PointOf(g, p, tap, offset);
  WeightedCorners<A> corners;
  CornerWeights(point.fraction_y, point.fraction_x, offset.mask, corners.weight);
  corners.packed = PackCorners(g, p.image, point.pixel, point.corners);
  return corners;
}

// Samples 16 bytes of channels: Load, then, when the loads have had time, Finish.
// kVectors: all channel runs are whole and aligned to 16 bytes. kRound: to TF32.
template <typename T, bool kVectors, bool kRound>
class Sampler {
 public:
  static constexpr int kLanes = 16 / sizeof(T);

  TF_DEFORMABLE_DEVICE void Load(const Convolution& g, const T* inputs, int64_t packed,
                                 int32_t channel, int32_t left) {
    if constexpr (kVectors) {
      const T* const first = inputs + (packed >> 4) * g.channels + channel;
      const int64_t row = static_cast<int64_t>(g.width) * g.channels;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool present = (packed >> j & 1) != 0 && left > 0;
        const T* const at = first + (j & 1) * g.channels + (j >> 1) * row;
        corners_[j] = present ? LoadGlobal16(at) : Vector16{{0, 0, 0, 0}};
      }
    }
  }

  // The sampled values; 0 from the channel `left` on.
  TF_DEFORMABLE_DEVICE void Sum(const Convolution& g, const T* inputs,
                                const WeightedCorners<ComputeType<T>>& corners, int32_t channel,
                                int32_t left, ComputeType<T> (&sums)[kLanes]) const {
    using A = ComputeType<T>;
    if constexpr (kVectors) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sums[i] = 0;
      if (left <= 0) return;  // a NaN position has no say there
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Elements<T> elements(corners_[j]);
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          sums[i] += corners.weight[j] * ToCompute(elements.values[i]);
        }
      }
    } else {
      const int64_t first = (corners.packed >> 4) * g.channels + channel;
      const int64_t row = static_cast<int64_t>(g.width) * g.channels;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        sums[i] = 0;
        if (i >= left) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool present = (corners.packed >> j & 1) != 0;
          const int64_t at = first + (j & 1) * g.channels + (j >> 1) * row + i;
          sums[i] += corners.weight[j] * (present ? ToCompute(inputs[at]) : A{0});
        }
      }
    }
  }

  // The same, as elements of a tile that will be multiplied.
  TF_DEFORMABLE_DEVICE Vector16 Finish(const Convolution& g, const T* inputs,
                                       const WeightedCorners<ComputeType<T>>& corners,
                                       int32_t channel, int32_t left) const {
    ComputeType<T> sums[kLanes];
    Sum(g, inputs, corners, channel, left, sums);
    Elements<T> elements;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if constexpr (kRound) {
        elements.values[i] = BitsToFloat(ToTensorFloat32(sums[i]));
      } else {
        elements.values[i] = FromCompute<T>(sums[i]);
      }
    }
    return elements.ToVector();
  }

 private:
  Vector16 corners_[4];
};

// --- Copying tiles into shared memory ------------------------------------------------------------

// Starts to copy rows [0, rows) of columns [0, columns) of a matrix into a tile of kRows x
// kColumns, whose rows are `to_row` apart; the rest of the tile becomes 0.
template <typename T, int kRows, int kColumns, bool kVectors>
TF_DEFORMABLE_DEVICE void CopyTile(const T* from, int64_t from_row, int rows, int columns, T* to,
                                   int to_row) {
  constexpr int kLanes = 16 / sizeof(T);
  constexpr int kRowVectors = kColumns / kLanes;
  constexpr int kVectorsInAll = kRows * kRowVectors;
#pragma unroll
  for (int first = 0; first < kVectorsInAll; first += kThreads) {
    const int i = first + ThreadIndex();
    if (kVectorsInAll % kThreads != 0 && i >= kVectorsInAll) break;
    const int row = i / kRowVectors, column = i % kRowVectors * kLanes;
    T* const target = to + row * to_row + column;
    if constexpr (kVectors) {
      const bool present = row < rows && column < columns;
      CopyAsync16(target, present ? from + row * from_row + column : from, present);
    } else {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        const bool present = row < rows && column + k < columns;
        target[k] = present ? from[row * from_row + column + k] : FromCompute<T>(0);
      }
    }
  }
}

// Stores a run of neighbouring sums, those of columns [column, columns) only.
template <typename T, int kRun, bool kVectors, typename Sum>
TF_DEFORMABLE_DEVICE void StoreRun(const Sum (&sums)[kRun], int column, int columns, T* to) {
  if constexpr (kVectors) {
    if (column >= columns) return;
    StoreElements<T, kRun>(sums, to);
  } else {
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      if (column + k < columns) to[k] = FromCompute<T>(sums[k]);
    }
  }
}

// --- Tiles ---------------------------------------------------------------------------------------

// A block's part of a product, kRows x kColumns, cut into kWarpRows x kWarpColumns for its warps.
template <typename T_, bool kExact_, int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_,
          bool kVectors_>
struct Tile {
  using T = T_;
  static constexpr bool kExact = kExact_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr bool kVectors = kVectors_;
  static constexpr bool kRound = std::is_same_v<T, float> && !kExact;
  using Product = std::conditional_t<kExact, ExactProduct<T, kWarpRows, kWarpColumns>,
                                     WarpProduct<T, kWarpRows, kWarpColumns>>;
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr int kSteps = kChunkBytes / 32;  // of the product in a chunk
  // Tiles of an operand that are copied in the background, the one in use included. Of large ones
  // the product takes so long that one ahead is enough, and two blocks fit on a multiprocessor.
  static constexpr int kStages = kRows * kColumns >= 128 * 128 ? 2 : 3;
  static_assert(kRows / kWarpRows * (kColumns / kWarpColumns) == kWarps, "a part for each warp");

  static TF_DEFORMABLE_DEVICE int FirstRow(int warp) {
    return warp / (kColumns / kWarpColumns) * kWarpRows;
  }
  static TF_DEFORMABLE_DEVICE int FirstColumn(int warp) {
    return warp % (kColumns / kWarpColumns) * kWarpColumns;
  }
};

// Takes pieces of a block's shared memory, one after the other. Also run on the host, from null, to
// know how much there is to ask for.
class SharedLayout {
 public:
  TF_DEFORMABLE_HOST_DEVICE explicit SharedLayout(char* memory) : memory_(memory) {}
  template <typename Element>
  TF_DEFORMABLE_HOST_DEVICE Element* Take(int64_t elements) {
    char* const taken = memory_ + size_;
    size_ += (elements * static_cast<int64_t>(sizeof(Element)) + 127) / 128 * 128;
    return reinterpret_cast<Element*>(taken);
  }
  TF_DEFORMABLE_HOST_DEVICE int64_t size() const { return size_; }

 private:
  char* memory_;
  int64_t size_ = 0;
};

// --- Forward -------------------------------------------------------------------------------------

// A block has kRows output pixels and kColumns filters of one group.
template <typename Tile>
struct ForwardShared {
  using T = typename Tile::T;
  static constexpr int kDepth = kChunkBytes / sizeof(T);
  static constexpr int kSamplesRow = PaddedRow<T>(kDepth, false);
  static constexpr int kFiltersRow = PaddedRow<T>(Tile::kColumns, true);
  TilePixel* pixels;                         // [kRows]
  WeightedCorners<ComputeType<T>>* corners;  // [taps of the block, kRows]
  T* samples;                                // [2, kRows, kSamplesRow]
  T* filters;                                // [Tile::kStages, kDepth, kFiltersRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE ForwardShared(char* memory, int taps) {
    SharedLayout layout(memory);
    pixels = layout.Take<TilePixel>(Tile::kRows);
    corners = layout.Take<WeightedCorners<ComputeType<T>>>((taps < kTapBlock ? taps : kTapBlock) *
                                                           Tile::kRows);
    samples = layout.Take<T>(2 * Tile::kRows * kSamplesRow);
    filters = layout.Take<T>(Tile::kStages * kDepth * kFiltersRow);
    bytes = layout.size();
  }
};

template <typename Tile>
TF_DEFORMABLE_KERNEL(kThreads, Tile::kRows* Tile::kColumns > 128 * 128 ? 1 : 2)
void ForwardKernel(Convolution g, ForwardTensors<typename Tile::T> tensors, int32_t column_tiles) {
  using T = typename Tile::T;
  using Shared = ForwardShared<Tile>;
  constexpr int kRowsAtOnce = kThreads * Tile::kLanes / Shared::kDepth;
  constexpr int kUnits = Tile::kRows / kRowsAtOnce;
  static_assert(kUnits <= Tile::kSteps, "a unit is sampled during a step of the product");
  const Shared shared(SharedMemory(), g.taps);
  const int thread = ThreadIndex(), warp = thread / 32, lane = thread % 32;
  const int32_t parts = g.channels / g.group_channels * column_tiles;
  const int64_t tile = BlockIndex() / parts;
  const int32_t part = static_cast<int32_t>(BlockIndex() - tile * parts);
  const int32_t group = part / column_tiles;
  const int32_t column = part % column_tiles * Tile::kColumns;  // of the group
  const int32_t columns = Min(Tile::kColumns, g.group_filters - column);
  const int32_t filter = group * g.group_filters + column;
  const int32_t segments = g.group_channels / g.segment;
  const int32_t chunks = (g.segment + Shared::kDepth - 1) / Shared::kDepth;

  if (thread < Tile::kRows) {
    shared.pixels[thread] = MakeTilePixel(g, PixelOfTile(g, tile, Tile::kRows, thread));
  }
  typename Tile::Product product;
  product.Clear();

  for (int32_t first_tap = 0; first_tap < g.taps; first_tap += kTapBlock) {
    const int taps = Min(kTapBlock, g.taps - first_tap);
    for (int32_t segment = 0; segment < segments; ++segment) {
      const int32_t first_channel = group * g.group_channels + segment * g.segment;
      const int32_t offset_group = first_channel / g.offset_group_channels;
      SyncThreads();  // the last segment's tiles have been read
      for (int i = thread; i < taps * Tile::kRows; i += kThreads) {
        const int row = i / taps, tap = i - row * taps;
        shared.corners[tap * Tile::kRows + row] =
            MakeWeightedCorners(g, shared.pixels[row], first_tap + tap,
                                LoadOffset(g, tensors.offsets, tensors.mask, shared.pixels[row],
                                           offset_group, first_tap + tap));
      }

      // Chunks of the segment, and for each all taps.
      const int32_t steps = chunks * taps;
      const auto copy_filters = [&](int32_t step) {
        if (step < steps) {
          const int32_t chunk = step / taps, tap = step - chunk * taps;
          const int64_t channel = static_cast<int64_t>(first_tap + tap) * g.group_channels +
                                  segment * g.segment + chunk * Shared::kDepth;
          CopyTile<T, Shared::kDepth, Tile::kColumns, Tile::kVectors>(
              tensors.filters + channel * g.filters + filter, g.filters,
              g.segment - chunk * Shared::kDepth, columns,
              shared.filters + step % Tile::kStages * Shared::kDepth * Shared::kFiltersRow,
              Shared::kFiltersRow);
        }
        CommitCopies();
      };
      Sampler<T, Tile::kVectors, Tile::kRound> sampler;
      const int vector = thread % (Shared::kDepth / Tile::kLanes) * Tile::kLanes;
      const int first_row = thread / (Shared::kDepth / Tile::kLanes);
      const auto corners_of = [&](int tap, int unit) -> const WeightedCorners<ComputeType<T>>& {
        return shared.corners[tap * Tile::kRows + first_row + unit * kRowsAtOnce];
      };
      const auto load = [&](int chunk, int tap, int unit) {
        const int32_t at = chunk * Shared::kDepth + vector;
        sampler.Load(g, tensors.inputs, corners_of(tap, unit).packed, first_channel + at,
                     g.segment - at);
      };
      const auto finish = [&](int chunk, int tap, int unit, int stage) {
        const int32_t at = chunk * Shared::kDepth + vector;
        const int row = stage * Tile::kRows + first_row + unit * kRowsAtOnce;
        *reinterpret_cast<Vector16*>(shared.samples + row * Shared::kSamplesRow + vector) =
            sampler.Finish(g, tensors.inputs, corners_of(tap, unit), first_channel + at,
                           g.segment - at);
      };

#pragma unroll
      for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_filters(stage);
      SyncThreads();  // the corners are there
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        load(0, 0, unit);
        finish(0, 0, unit, 0);
      }
      int32_t next_chunk = 0, next_tap = 0;
      for (int32_t step = 0; step < steps; ++step) {
        if (++next_tap == taps) {
          next_tap = 0;
          ++next_chunk;
        }
        const bool more = step + 1 < steps;
        WaitForCopies<Tile::kStages - 2>();
        SyncThreads();  // this step's tiles are there, those of the last one have been read
        copy_filters(step + Tile::kStages - 1);
        const T* const a =
            shared.samples + (step % 2 * Tile::kRows + Tile::FirstRow(warp)) * Shared::kSamplesRow;
        const T* const b = shared.filters +
                           step % Tile::kStages * Shared::kDepth * Shared::kFiltersRow +
                           Tile::FirstColumn(warp);
#pragma unroll
        for (int k = 0; k < Tile::kSteps; ++k) {
          constexpr int kDepth = Tile::Product::kDepth;
          if (k < kUnits && more) load(next_chunk, next_tap, k);
          product.template Step<Contiguous::kDepth, Contiguous::kOutput, true>(
              a + k * kDepth, Shared::kSamplesRow, b + k * kDepth * Shared::kFiltersRow,
              Shared::kFiltersRow, lane);
          if (k < kUnits && more) finish(next_chunk, next_tap, k, (step + 1) % 2);
        }
      }
    }
  }

  product.ForEachRun(lane, [&](int row, int run, const typename Tile::Product::Sum* sums) {
    constexpr int kRun = Tile::Product::kRun;
    const int64_t pixel = shared.pixels[Tile::FirstRow(warp) + row].pixel;
    const int at = Tile::FirstColumn(warp) + run;
    if (pixel < 0) return;
    typename Tile::Product::Sum with_bias[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      const bool has_bias = tensors.bias != nullptr && at + k < columns;
      with_bias[k] = sums[k] + (has_bias ? ToCompute(tensors.bias[filter + at + k]) : 0);
    }
    StoreRun<T, kRun, Tile::kVectors>(with_bias, at, columns,
                                      tensors.output + pixel * g.filters + filter + at);
  });
}

// --- Gradients of inputs, offsets and mask -------------------------------------------------------

// How a launch of the gradient for the inputs cuts the work, and where it writes.
template <typename A>
struct InputsGradientJob {
  // A block has some chunks of kColumns channels of a segment, a "range"; its tiles follow each
  // other.
  int32_t chunks_per_range, ranges_per_segment, ranges;
  int64_t tiles_per_block;
  int32_t block_taps;  // whose sampling points are held at a time
  bool resident;       // all of a tile's grad_output is in shared memory, else a part at a time
  bool in_order;       // one thread adds all that is added to an element
  A* grad_inputs;      // [images, H, W, C], images from first_image on
  int64_t first_image;
  // Gradients for (dy, dx, mask): [ranges, pixels, taps, 3], pixels from the launch's first one on;
  // null: there is one range to an offset group, which writes them itself.
  A* partials;
};

// What scattering reads of a SamplingPoint.
template <typename A>
struct alignas(8) ScatterPoint {
  A fraction_y, fraction_x, mask;
  int64_t packed;
};

inline constexpr int kScatterLanes = 16;    // threads that scatter one pixel's chunk
inline constexpr int kScatterChannels = 4;  // of each of them
inline constexpr int kScatterChunk = kScatterLanes * kScatterChannels;

template <typename Tile>
struct InputsGradientShared {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  static constexpr int kDepth = kChunkBytes / sizeof(T);
  static constexpr int kRow = PaddedRow<T>(kDepth, false);
  static constexpr int kColumnsRow = Tile::kColumns + 8;
  TilePixel* pixels;        // [kRows]
  ScatterPoint<A>* points;  // [taps of the block, kRows]
  A* gradients;             // [taps of the block, kRows, 3]
  A* columns;               // [kRows, kColumnsRow]: ds
  T* grad_output;           // [chunks of filters or Tile::kStages, kRows, kRow]
  T* filters;               // [Tile::kStages, kColumns, kRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE InputsGradientShared(char* memory, int block_taps,
                                                 int grad_output_chunks, bool depthwise) {
    SharedLayout layout(memory);
    pixels = layout.Take<TilePixel>(Tile::kRows);
    points = layout.Take<ScatterPoint<A>>(block_taps * Tile::kRows);
    gradients = layout.Take<A>(block_taps * Tile::kRows * 3);
    columns = layout.Take<A>(depthwise ? 0 : Tile::kRows * kColumnsRow);
    grad_output = layout.Take<T>(depthwise ? 0 : grad_output_chunks * Tile::kRows * kRow);
    filters = layout.Take<T>(depthwise ? 0 : Tile::kStages * Tile::kColumns * kRow);
    bytes = layout.size();
  }
};

// Four neighbouring channels, widened; zeros where there are none.
template <typename T, bool kVectors>
TF_DEFORMABLE_DEVICE void LoadFour(const T* from, bool present, int left,
                                   ComputeType<T> (&values)[kScatterChannels]) {
  using A = ComputeType<T>;
#pragma unroll
  for (int i = 0; i < kScatterChannels; ++i) values[i] = 0;
  if (!present || left <= 0) return;
  if constexpr (kVectors) {
    LoadRun<T, kScatterChannels>(from, values);
  } else {
#pragma unroll
    for (int i = 0; i < kScatterChannels; ++i) values[i] = i < left ? ToCompute(from[i]) : A{0};
  }
}

template <typename A, bool kVectors>
TF_DEFORMABLE_DEVICE void AddFour(A* to, int left, const A (&values)[kScatterChannels]) {
  if constexpr (kVectors) {
    AddRun<A, kScatterChannels>(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < kScatterChannels; ++i) {
      if (i < left) AtomicAdd(to + i, values[i]);
    }
  }
}

// A chunk of ds of one tap, for all pixels of a tile: added to dx at the corners (if the order does
// not matter), dotted with x there. get(row, i, values): ds of channels [i, i+4) of the chunk.
template <typename Tile, typename Get>
TF_DEFORMABLE_DEVICE void ScatterChunk(const Convolution& g, const typename Tile::T* inputs,
                                       const InputsGradientJob<ComputeType<typename Tile::T>>& job,
                                       const InputsGradientShared<Tile>& shared, int tap,
                                       int32_t channel, int width, const Get& get) {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  constexpr int kRowsAtOnce = kThreads / kScatterLanes;
  const int at = ThreadIndex() % kScatterLanes * kScatterChannels, left = width - at;
  const int first_row = ThreadIndex() / kScatterLanes;
  const int64_t row_size = static_cast<int64_t>(g.width) * g.channels;
  const int64_t origin = job.first_image * g.height * g.width;
  const auto scatter = [&](const ScatterPoint<A>& p, const A(&ds)[kScatterChannels]) {
    A weight[4];
    CornerWeights(p.fraction_y, p.fraction_x, p.mask, weight);
    A* const first = job.grad_inputs + ((p.packed >> 4) - origin) * g.channels + channel + at;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if ((p.packed >> j & 1) == 0 || left <= 0) continue;
      A values[kScatterChannels];
#pragma unroll
      for (int i = 0; i < kScatterChannels; ++i) values[i] = weight[j] * ds[i];
      AddFour<A, Tile::kVectors>(first + (j & 1) * g.channels + (j >> 1) * row_size, left, values);
    }
  };

#pragma unroll 2
  for (int row = first_row; row < Tile::kRows; row += kRowsAtOnce) {
    const ScatterPoint<A> p = shared.points[tap * Tile::kRows + row];
    const T* const first = inputs + (p.packed >> 4) * g.channels + channel + at;
    A ds[kScatterChannels], x[4][kScatterChannels], dots[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      LoadFour<T, Tile::kVectors>(first + (j & 1) * g.channels + (j >> 1) * row_size,
                                  (p.packed >> j & 1) != 0, left, x[j]);
    }
    get(row, at, ds);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      dots[j] = 0;
#pragma unroll
      for (int i = 0; i < kScatterChannels; ++i) {
        if (Tile::kVectors || i < left) dots[j] += ds[i] * x[j][i];
      }
      if (left <= 0 || (p.packed >> j & 1) == 0) dots[j] = 0;  // even if ds is infinite
    }
    const PointGradients<A> of_point =
        MakePointGradients(p.fraction_y, p.fraction_x, p.mask, dots[0], dots[1], dots[2], dots[3]);
    A gradients[3] = {of_point.y, of_point.x, of_point.mask};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int lanes = kScatterLanes / 2; lanes > 0; lanes /= 2) {
        gradients[i] += ShuffleXor(gradients[i], lanes);
      }
    }
    if (at == 0) {
      A* const sums = shared.gradients + (tap * Tile::kRows + row) * 3;
#pragma unroll
      for (int i = 0; i < 3; ++i) sums[i] += gradients[i];
    }
    if (!job.in_order) scatter(p, ds);
  }
  // The device keeps the order of what one thread adds to one element.
  if (job.in_order && first_row == 0) {
    for (int row = 0; row < Tile::kRows; ++row) {
      A ds[kScatterChannels];
      get(row, at, ds);
      scatter(shared.points[tap * Tile::kRows + row], ds);
    }
  }
}

// kDepthwise: each channel is a group of its own, with one filter; then there is no product.
template <typename Tile, bool kDepthwise>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void InputsGradientKernel(Convolution g, BackwardTensors<typename Tile::T> tensors,
                          InputsGradientJob<ComputeType<typename Tile::T>> job) {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  using Shared = InputsGradientShared<Tile>;
  static_assert(Tile::kColumns == kScatterChunk, "what is multiplied is what is scattered");
  const int32_t filter_chunks = (g.group_filters + Shared::kDepth - 1) / Shared::kDepth;
  const Shared shared(SharedMemory(), job.block_taps, job.resident ? filter_chunks : Tile::kStages,
                      kDepthwise);
  const int thread = ThreadIndex(), warp = thread / 32, lane = thread % 32;
  const int32_t range = static_cast<int32_t>(BlockIndex() % job.ranges);
  const int64_t first_tile = BlockIndex() / job.ranges * job.tiles_per_block;
  const int32_t segment = range / job.ranges_per_segment;
  const int32_t first_chunk = range % job.ranges_per_segment * job.chunks_per_range;
  const int32_t chunks =
      Min(job.chunks_per_range, (g.segment + kScatterChunk - 1) / kScatterChunk - first_chunk);
  const int32_t first_channel = segment * g.segment + first_chunk * kScatterChunk;
  const int32_t offset_group = first_channel / g.offset_group_channels;
  const int32_t group = first_channel / g.group_channels;
  const int32_t left = g.segment - first_chunk * kScatterChunk;  // channels from the first one on

  for (int64_t tile = first_tile; tile < first_tile + job.tiles_per_block; ++tile) {
    SyncThreads();  // the last tile is done with
    if (thread < Tile::kRows) {
      shared.pixels[thread] = MakeTilePixel(g, PixelOfTile(g, tile, Tile::kRows, thread));
    }
    const auto copy_grad_output = [&](int32_t chunk, int slot) {
      constexpr int kRowVectors = Shared::kDepth / Tile::kLanes;
      for (int i = thread; i < Tile::kRows * kRowVectors; i += kThreads) {
        const int row = i / kRowVectors, column = i % kRowVectors * Tile::kLanes;
        const int64_t pixel = shared.pixels[row].pixel;
        const int32_t at = chunk * Shared::kDepth + column;
        const T* const from =
            tensors.grad_output + pixel * g.filters + group * g.group_filters + at;
        T* const to = shared.grad_output + (slot * Tile::kRows + row) * Shared::kRow + column;
        if constexpr (Tile::kVectors) {
          const bool present = pixel >= 0 && at < g.group_filters;
          CopyAsync16(to, present ? from : tensors.grad_output, present);
        } else {
#pragma unroll
          for (int k = 0; k < Tile::kLanes; ++k) {
            const bool present = pixel >= 0 && at + k < g.group_filters;
            to[k] = present ? from[k] : FromCompute<T>(0);
          }
        }
      }
    };
    if (!kDepthwise && job.resident) {
      SyncThreads();  // the pixels are there
      for (int32_t chunk = 0; chunk < filter_chunks; ++chunk) copy_grad_output(chunk, chunk);
      // Committed with the first filters.
    }

    for (int32_t first_tap = 0; first_tap < g.taps; first_tap += job.block_taps) {
      const int taps = Min(job.block_taps, g.taps - first_tap);
      SyncThreads();  // the pixels are there, the last taps are done with
      for (int i = thread; i < taps * Tile::kRows; i += kThreads) {
        const int row = i / taps, tap = i - row * taps;
        const TilePixel& pixel = shared.pixels[row];
        const Offset<A> offset =
            LoadOffset(g, tensors.offsets, tensors.mask, pixel, offset_group, first_tap + tap);
        const SamplingPoint<A> point = PointOf(g, pixel, first_tap + tap, offset);
        const int at = tap * Tile::kRows + row;
        shared.points[at] = {point.fraction_y, point.fraction_x, offset.mask,
                             PackCorners(g, pixel.image, point.pixel, point.corners)};
#pragma unroll
        for (int k = 0; k < 3; ++k) shared.gradients[at * 3 + k] = 0;
      }

      if constexpr (kDepthwise) {
        SyncThreads();  // the points are there
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
          for (int tap = 0; tap < taps; ++tap) {
            const int32_t channel = first_channel + chunk * kScatterChunk;
            const T* const filters =
                tensors.filters + static_cast<int64_t>(first_tap + tap) * g.channels + channel;
            const int width = left - chunk * kScatterChunk;
            ScatterChunk(g, tensors.inputs, job, shared, tap, channel, width,
                         [&](int row, int at, A(&ds)[kScatterChannels]) {
                           const int64_t pixel = shared.pixels[row].pixel;
                           A weights[kScatterChannels];
                           LoadFour<T, Tile::kVectors>(
                               tensors.grad_output + pixel * g.channels + channel + at, pixel >= 0,
                               width - at, ds);
                           LoadFour<T, Tile::kVectors>(filters + at, true, width - at, weights);
#pragma unroll
                           for (int i = 0; i < kScatterChannels; ++i) ds[i] *= weights[i];
                         });
          }
        }
      } else {
        // Chunks of channels, for each all taps, for each all chunks of filters.
        const int32_t steps = chunks * taps * filter_chunks;
        const auto copy = [&](int32_t step) {
          if (step < steps) {
            const int32_t product = step / filter_chunks, part = step - product * filter_chunks;
            const int32_t chunk = product / taps, tap = product - chunk * taps;
            const int64_t row = static_cast<int64_t>(first_tap + tap) * g.group_channels +
                                first_channel - group * g.group_channels + chunk * kScatterChunk;
            CopyTile<T, Tile::kColumns, Shared::kDepth, Tile::kVectors>(
                tensors.filters + row * g.filters + group * g.group_filters + part * Shared::kDepth,
                g.filters, left - chunk * kScatterChunk, g.group_filters - part * Shared::kDepth,
                shared.filters + step % Tile::kStages * Tile::kColumns * Shared::kRow,
                Shared::kRow);
            if (!job.resident) copy_grad_output(part, step % Tile::kStages);
          }
          CommitCopies();
        };
#pragma unroll
        for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy(stage);
        int32_t step = 0;
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
          for (int tap = 0; tap < taps; ++tap) {
            typename Tile::Product product;
            product.Clear();
            for (int32_t part = 0; part < filter_chunks; ++part, ++step) {
              WaitForCopies<Tile::kStages - 2>();
              SyncThreads();  // this step's tiles and the points are there, the last ones were read
              copy(step + Tile::kStages - 1);
              const int slot = job.resident ? part : step % Tile::kStages;
              const T* const a =
                  shared.grad_output + (slot * Tile::kRows + Tile::FirstRow(warp)) * Shared::kRow;
              const T* const b =
                  shared.filters +
                  (step % Tile::kStages * Tile::kColumns + Tile::FirstColumn(warp)) * Shared::kRow;
#pragma unroll
              for (int k = 0; k < Tile::kSteps; ++k) {
                constexpr int kDepth = Tile::Product::kDepth;
                product.template Step<Contiguous::kDepth, Contiguous::kDepth, false>(
                    a + k * kDepth, Shared::kRow, b + k * kDepth, Shared::kRow, lane);
              }
            }
            product.ForEachRun(lane, [&](int row, int run, const A* sums) {
              constexpr int kRun = Tile::Product::kRun;
              A* const to = shared.columns + (Tile::FirstRow(warp) + row) * Shared::kColumnsRow +
                            Tile::FirstColumn(warp) + run;
#pragma unroll
              for (int k = 0; k < kRun; ++k) to[k] = sums[k];
            });
            SyncThreads();  // ds is there; the next step's barrier keeps it until it has been read
            ScatterChunk(g, tensors.inputs, job, shared, tap, first_channel + chunk * kScatterChunk,
                         left - chunk * kScatterChunk,
                         [&](int row, int at, A(&ds)[kScatterChannels]) {
                           const A* const from = shared.columns + row * Shared::kColumnsRow + at;
#pragma unroll
                           for (int i = 0; i < kScatterChannels; ++i) ds[i] = from[i];
                         });
          }
        }
      }

      SyncThreads();  // the gradients are there
      for (int i = thread; i < taps * Tile::kRows; i += kThreads) {
        const int row = i / taps, tap = i - row * taps;
        const int64_t pixel = shared.pixels[row].pixel;
        if (pixel < 0) continue;
        const A* const sums = shared.gradients + (tap * Tile::kRows + row) * 3;
        if (job.partials != nullptr) {
          const int64_t pixels = g.last_pixel - g.first_pixel;
          A* const to = job.partials +
                        ((range * pixels + pixel - g.first_pixel) * g.taps + first_tap + tap) * 3;
#pragma unroll
          for (int k = 0; k < 3; ++k) to[k] = sums[k];
        } else {
          const int64_t at = (pixel * g.offset_groups + offset_group) * g.taps + first_tap + tap;
          StoreSampling(tensors.grad_offsets, 2 * at, sums[0]);
          StoreSampling(tensors.grad_offsets, 2 * at + 1, sums[1]);
          if (tensors.grad_mask) StoreSampling(tensors.grad_mask, at, sums[2]);
        }
      }
    }
  }
}

// Adds up the ranges of each offset group, in their order. One thread to a sample.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void ReducePartialsKernel(Convolution g, const ComputeType<T>* partials, int32_t ranges,
                          SamplingTensor<T> grad_offsets, SamplingTensor<T> grad_mask) {
  using A = ComputeType<T>;
  const int64_t pixels = g.last_pixel - g.first_pixel;
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  if (i >= pixels * g.offset_groups * g.taps) return;
  const int64_t tap = i % g.taps, offset_group = i / g.taps % g.offset_groups;
  const int64_t pixel = i / g.taps / g.offset_groups;
  const int32_t ranges_per_group = ranges / g.offset_groups;
  A sums[3] = {};
  for (int32_t r = 0; r < ranges_per_group; ++r) {
    const A* const from =
        partials + (((offset_group * ranges_per_group + r) * pixels + pixel) * g.taps + tap) * 3;
#pragma unroll
    for (int k = 0; k < 3; ++k) sums[k] += from[k];
  }
  const int64_t at = g.first_pixel * g.offset_groups * g.taps + i;
  StoreSampling(grad_offsets, 2 * at, sums[0]);
  StoreSampling(grad_offsets, 2 * at + 1, sums[1]);
  if (grad_mask) StoreSampling(grad_mask, at, sums[2]);
}

// to[i] = sum over s of from[s, i], in their order.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void SumKernel(const ComputeType<T>* from, int64_t size, int32_t summands, T* to) {
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  if (i >= size) return;
  ComputeType<T> sum = from[i];
  for (int32_t s = 1; s < summands; ++s) sum += from[s * size + i];
  to[i] = FromCompute<T>(sum);
}

// --- Gradient of the filters ---------------------------------------------------------------------

// How a launch cuts the work: a block has two slots, each a tap and a chunk of kSlotChannels
// channels, some columns (filters) and a segment ("split") of the pixels.
template <typename A>
struct FiltersGradientJob {
  int32_t slots, slot_pairs, column_tiles;  // of a group
  int32_t splits;
  int64_t pixels_per_split;
  A* partials;  // [splits, taps, C/groups, F]; null: there is one split, which writes the result
};

inline constexpr int kSlotChannels = 64;

template <typename Tile>
struct FiltersGradientShared {
  using T = typename Tile::T;
  static constexpr int kPixels = kChunkBytes / sizeof(T);
  static constexpr int kSamplesRow = PaddedRow<T>(Tile::kRows, true);
  static constexpr int kGradOutputRow = PaddedRow<T>(Tile::kColumns, true);
  WeightedCorners<ComputeType<T>>* corners;  // [2, 2 slots, kPixels]
  T* samples;                                // [2, kPixels, kSamplesRow]
  T* grad_output;                            // [Tile::kStages, kPixels, kGradOutputRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE explicit FiltersGradientShared(char* memory) {
    SharedLayout layout(memory);
    corners = layout.Take<WeightedCorners<ComputeType<T>>>(2 * 2 * kPixels);
    samples = layout.Take<T>(2 * kPixels * kSamplesRow);
    grad_output = layout.Take<T>(Tile::kStages * kPixels * kGradOutputRow);
    bytes = layout.size();
  }
};

// A tap and a chunk of a group's channels; `width` channels, 0 beyond the last slot.
struct FilterSlot {
  int32_t tap, channel, width;  // channel: of the group
};

TF_DEFORMABLE_DEVICE FilterSlot MakeFilterSlot(const Convolution& g, int32_t slots, int32_t slot) {
  if (slot >= slots) return {0, 0, 0};
  const int32_t chunks = (g.segment + kSlotChannels - 1) / kSlotChannels;
  const int32_t group_chunks = g.group_channels / g.segment * chunks;
  const int32_t tap = slot / group_chunks, within = slot - tap * group_chunks;
  const int32_t segment = within / chunks, chunk = within - segment * chunks;
  return {tap, segment * g.segment + chunk * kSlotChannels,
          Min(kSlotChannels, g.segment - chunk * kSlotChannels)};
}

template <typename Tile>
TF_DEFORMABLE_KERNEL(kThreads, Tile::kRows* Tile::kColumns > 128 * 128 ? 1 : 2)
void FiltersGradientKernel(Convolution g, BackwardTensors<typename Tile::T> tensors,
                           FiltersGradientJob<ComputeType<typename Tile::T>> job) {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  using Shared = FiltersGradientShared<Tile>;
  constexpr int kSlotVectors = kSlotChannels / Tile::kLanes;
  constexpr int kRowsAtOnce = kThreads / (2 * kSlotVectors);
  constexpr int kUnits = Shared::kPixels / kRowsAtOnce;
  static_assert(Tile::kRows == 2 * kSlotChannels, "two slots");
  static_assert(kUnits <= Tile::kSteps, "a unit is sampled during a step of the product");
  static_assert(2 * Shared::kPixels <= kThreads, "a thread to each sampling point");
  const Shared shared(SharedMemory());
  const int thread = ThreadIndex(), warp = thread / 32, lane = thread % 32;
  int64_t block = BlockIndex();
  const int32_t column_tile = static_cast<int32_t>(block % job.column_tiles);
  block /= job.column_tiles;
  const int32_t pair = static_cast<int32_t>(block % job.slot_pairs);
  block /= job.slot_pairs;
  const int32_t groups = g.channels / g.group_channels;
  const int32_t group = static_cast<int32_t>(block % groups);
  const int64_t split = block / groups;
  const int32_t column = column_tile * Tile::kColumns;
  const int32_t columns = Min(Tile::kColumns, g.group_filters - column);
  const int32_t filter = group * g.group_filters + column;
  const int64_t first_pixel = g.first_pixel + split * job.pixels_per_split;
  const int64_t end = first_pixel + job.pixels_per_split;
  const int64_t last_pixel = end < g.last_pixel ? end : g.last_pixel;
  const int32_t steps =
      static_cast<int32_t>((last_pixel - first_pixel + Shared::kPixels - 1) / Shared::kPixels);

  // The sampling points: a thread works out one of each step, in slot `thread / kPixels`.
  const int point_slot = thread / Shared::kPixels;  // 0, 1; more: none
  const FilterSlot point = MakeFilterSlot(g, job.slots, 2 * pair + point_slot);
  const int32_t point_offset_group =
      (group * g.group_channels + point.channel) / g.offset_group_channels;
  // Read when a step begins and used when it ends, so that nobody waits for them.
  TilePixel point_pixel = {-1, 0, 0, 0};
  Offset<A> point_offset = {0, 0, 0};
  const auto read_offsets = [&](int32_t step) {
    if (point_slot > 1 || step >= steps) return;
    const int64_t pixel =
        first_pixel + static_cast<int64_t>(step) * Shared::kPixels + thread % Shared::kPixels;
    point_pixel = MakeTilePixel(g, pixel < last_pixel ? pixel : -1);
    point_offset =
        LoadOffset(g, tensors.offsets, tensors.mask, point_pixel, point_offset_group, point.tap);
  };
  const auto store_corners = [&](int32_t step) {
    if (point_slot > 1 || step >= steps) return;
    shared.corners[(step % 2 * 2 + point_slot) * Shared::kPixels + thread % Shared::kPixels] =
        MakeWeightedCorners(g, point_pixel, point.tap, point_offset);
  };
  const auto copy_grad_output = [&](int32_t step) {
    if (step < steps) {
      const int64_t pixel = first_pixel + static_cast<int64_t>(step) * Shared::kPixels;
      const int64_t rows = last_pixel - pixel;
      CopyTile<T, Shared::kPixels, Tile::kColumns, Tile::kVectors>(
          tensors.grad_output + pixel * g.filters + filter, g.filters,
          rows < Shared::kPixels ? static_cast<int>(rows) : Shared::kPixels, columns,
          shared.grad_output + step % Tile::kStages * Shared::kPixels * Shared::kGradOutputRow,
          Shared::kGradOutputRow);
    }
    CommitCopies();
  };

  // Sampling: 16 bytes of one slot at a time.
  Sampler<T, Tile::kVectors, Tile::kRound> sampler;
  const int sample_slot = thread / kSlotVectors % 2;
  const int vector = thread % kSlotVectors * Tile::kLanes;
  const int first_row = thread / (2 * kSlotVectors);
  const FilterSlot slot = MakeFilterSlot(g, job.slots, 2 * pair + sample_slot);
  const int32_t channel = group * g.group_channels + slot.channel + vector;
  const int32_t left = slot.width - vector;
  const auto corners_of = [&](int32_t step, int unit) -> const WeightedCorners<A>& {
    return shared
        .corners[(step % 2 * 2 + sample_slot) * Shared::kPixels + first_row + unit * kRowsAtOnce];
  };
  const auto load = [&](int32_t step, int unit) {
    sampler.Load(g, tensors.inputs, corners_of(step, unit).packed, channel, left);
  };
  const auto finish = [&](int32_t step, int unit) {
    const int row = step % 2 * Shared::kPixels + first_row + unit * kRowsAtOnce;
    *reinterpret_cast<Vector16*>(shared.samples + row * Shared::kSamplesRow +
                                 sample_slot * kSlotChannels + vector) =
        sampler.Finish(g, tensors.inputs, corners_of(step, unit), channel, left);
  };

  typename Tile::Product product;
  product.Clear();
#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_grad_output(stage);
  for (int32_t step = 0; step < 2; ++step) {
    read_offsets(step);
    store_corners(step);
  }
  SyncThreads();  // the corners are there
  if (steps > 0) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      load(0, unit);
      finish(0, unit);
    }
  }
  for (int32_t step = 0; step < steps; ++step) {
    const bool more = step + 1 < steps;
    WaitForCopies<Tile::kStages - 2>();
    SyncThreads();  // this step's tiles are there, those of the last one have been read
    copy_grad_output(step + Tile::kStages - 1);
    read_offsets(step + 2);
    const T* const a =
        shared.samples + step % 2 * Shared::kPixels * Shared::kSamplesRow + Tile::FirstRow(warp);
    const T* const b = shared.grad_output +
                       step % Tile::kStages * Shared::kPixels * Shared::kGradOutputRow +
                       Tile::FirstColumn(warp);
#pragma unroll
    for (int k = 0; k < Tile::kSteps; ++k) {
      constexpr int kDepth = Tile::Product::kDepth;
      if (k < kUnits && more) load(step + 1, k);
      product.template Step<Contiguous::kOutput, Contiguous::kOutput, true>(
          a + k * kDepth * Shared::kSamplesRow, Shared::kSamplesRow,
          b + k * kDepth * Shared::kGradOutputRow, Shared::kGradOutputRow, lane);
      if (k < kUnits && more) finish(step + 1, k);
    }
    store_corners(step + 2);
  }

  static_assert(kSlotChannels % Tile::kWarpRows == 0, "a warp's rows are of one slot");
  const FilterSlot of =
      MakeFilterSlot(g, job.slots, 2 * pair + Tile::FirstRow(warp) / kSlotChannels);
  product.ForEachRun(lane, [&](int row, int run, const A* sums) {
    constexpr int kRun = Tile::Product::kRun;
    const int32_t in_slot = Tile::FirstRow(warp) % kSlotChannels + row;
    if (in_slot >= of.width) return;
    const int64_t filter_row =
        static_cast<int64_t>(of.tap) * g.group_channels + of.channel + in_slot;
    const int at = Tile::FirstColumn(warp) + run;
    A values[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) values[k] = sums[k];
    const int64_t target = filter_row * g.filters + filter + at;
    if (job.partials == nullptr) {
      StoreRun<T, kRun, Tile::kVectors>(values, at, columns, tensors.grad_filters + target);
    } else {
      const int64_t size = static_cast<int64_t>(g.taps) * g.group_channels * g.filters;
      StoreRun<A, kRun, Tile::kVectors>(values, at, columns, job.partials + split * size + target);
    }
  });
}

// --- Depthwise -----------------------------------------------------------------------------------
//
// Each channel is a group of its own, with one filter: no product, the time goes into reading. A
// block has kDepthwisePixels pixels and walks over chunks of 128 bytes of channels, a thread to
// each 16 bytes of a pixel.

inline constexpr int kDepthwisePixels = kThreads * 16 / kChunkBytes;

// As in InputsGradientJob.
struct DepthwiseRanges {
  int32_t chunks_per_range, ranges_per_segment, ranges;
};

template <typename T>
struct DepthwiseShared {
  TilePixel* pixels;                         // [kDepthwisePixels]
  WeightedCorners<ComputeType<T>>* corners;  // [taps, kDepthwisePixels]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE DepthwiseShared(char* memory, int64_t taps) {
    SharedLayout layout(memory);
    pixels = layout.Take<TilePixel>(kDepthwisePixels);
    corners = layout.Take<WeightedCorners<ComputeType<T>>>(taps * kDepthwisePixels);
    bytes = layout.size();
  }
};

// kLanes channels of a tensor, widened.
template <typename T, bool kVectors>
TF_DEFORMABLE_DEVICE void LoadLanes(const T* from, int left,
                                    ComputeType<T> (&values)[16 / sizeof(T)]) {
  constexpr int kLanes = 16 / sizeof(T);
  if constexpr (kVectors) {
    const Elements<T> elements(left > 0 ? LoadGlobal16(from) : Vector16{{0, 0, 0, 0}});
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = ToCompute(elements.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = i < left ? ToCompute(from[i]) : ComputeType<T>{0};
  }
}

template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void DepthwiseForwardKernel(Convolution g, ForwardTensors<T> tensors, DepthwiseRanges ranges) {
  using A = ComputeType<T>;
  constexpr int kLanes = 16 / sizeof(T), kDepth = kChunkBytes / sizeof(T);
  const DepthwiseShared<T> shared(SharedMemory(), g.taps);
  const int thread = ThreadIndex();
  const int32_t range = static_cast<int32_t>(BlockIndex() % ranges.ranges);
  const int64_t tile = BlockIndex() / ranges.ranges;
  const int32_t segment = range / ranges.ranges_per_segment;
  const int32_t first_chunk = range % ranges.ranges_per_segment * ranges.chunks_per_range;
  const int32_t chunks =
      Min(ranges.chunks_per_range, (g.segment + kDepth - 1) / kDepth - first_chunk);
  const int32_t offset_group = segment * g.segment / g.offset_group_channels;

  if (thread < kDepthwisePixels) {
    shared.pixels[thread] = MakeTilePixel(g, PixelOfTile(g, tile, kDepthwisePixels, thread));
  }
  SyncThreads();
  for (int i = thread; i < g.taps * kDepthwisePixels; i += kThreads) {
    const int row = i / g.taps, tap = i - row * g.taps;
    shared.corners[tap * kDepthwisePixels + row] = MakeWeightedCorners(
        g, shared.pixels[row], tap,
        LoadOffset(g, tensors.offsets, tensors.mask, shared.pixels[row], offset_group, tap));
  }
  SyncThreads();
  const int row = thread / (kDepth / kLanes);
  const int64_t pixel = shared.pixels[row].pixel;
  if (pixel < 0) return;
  for (int32_t chunk = first_chunk; chunk < first_chunk + chunks; ++chunk) {
    const int32_t at = chunk * kDepth + thread % (kDepth / kLanes) * kLanes;
    const int32_t channel = segment * g.segment + at, left = g.segment - at;
    A sums[kLanes] = {};
#pragma unroll 3
    for (int32_t tap = 0; tap < g.taps; ++tap) {
      const WeightedCorners<A>& corners = shared.corners[tap * kDepthwisePixels + row];
      Sampler<T, kVectors, false> sampler;
      A values[kLanes], weights[kLanes];
      sampler.Load(g, tensors.inputs, corners.packed, channel, left);
      LoadLanes<T, kVectors>(tensors.filters + static_cast<int64_t>(tap) * g.channels + channel,
                             left, weights);
      sampler.Sum(g, tensors.inputs, corners, channel, left, values);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sums[i] += weights[i] * values[i];
    }
    if (tensors.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (i < left) sums[i] += ToCompute(tensors.bias[channel + i]);
      }
    }
    StoreRun<T, kLanes, kVectors>(sums, 0, left, tensors.output + pixel * g.channels + channel);
  }
}

// A block has a chunk of channels, a tap and a segment ("split") of the pixels; partials
// [splits, taps, C].
template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void DepthwiseFiltersGradientKernel(Convolution g, BackwardTensors<T> tensors,
                                    int64_t pixels_per_split, ComputeType<T>* partials) {
  using A = ComputeType<T>;
  constexpr int kLanes = 16 / sizeof(T), kDepth = kChunkBytes / sizeof(T);
  constexpr int kRowThreads = kDepth / kLanes;
  const int32_t chunks = (g.segment + kDepth - 1) / kDepth;
  const int32_t parts = chunks * (g.channels / g.segment);
  const int32_t part = static_cast<int32_t>(BlockIndex() % parts);
  const int32_t tap = static_cast<int32_t>(BlockIndex() / parts % g.taps);
  const int64_t split = BlockIndex() / parts / g.taps;
  const int row = ThreadIndex() / kRowThreads;
  const int32_t segment = part / chunks;
  const int32_t at = part % chunks * kDepth + ThreadIndex() % kRowThreads * kLanes;
  const int32_t channel = segment * g.segment + at, left = g.segment - at;
  const int32_t offset_group = segment * g.segment / g.offset_group_channels;
  const int64_t first_pixel = g.first_pixel + split * pixels_per_split;
  const int64_t end = first_pixel + pixels_per_split;
  const int64_t last_pixel = end < g.last_pixel ? end : g.last_pixel;

  A sums[kLanes] = {};
#pragma unroll 2
  for (int64_t pixel = first_pixel + row; pixel < last_pixel; pixel += kDepthwisePixels) {
    const TilePixel p = MakeTilePixel(g, pixel);
    const WeightedCorners<A> corners = MakeWeightedCorners(
        g, p, tap, LoadOffset(g, tensors.offsets, tensors.mask, p, offset_group, tap));
    Sampler<T, kVectors, false> sampler;
    A values[kLanes], gradients[kLanes];
    sampler.Load(g, tensors.inputs, corners.packed, channel, left);
    LoadLanes<T, kVectors>(tensors.grad_output + pixel * g.channels + channel, left, gradients);
    sampler.Sum(g, tensors.inputs, corners, channel, left, values);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sums[i] += gradients[i] * values[i];
  }
  A* const shared = reinterpret_cast<A*>(SharedMemory());  // [kDepthwisePixels, kDepth]
  const int column = ThreadIndex() % kRowThreads * kLanes;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) shared[row * kDepth + column + i] = sums[i];
  SyncThreads();
  if (row > 0) return;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    if (i >= left) break;
    A sum = 0;
    for (int r = 0; r < kDepthwisePixels; ++r) sum += shared[r * kDepth + column + i];
    partials[(split * g.taps + tap) * g.channels + channel + i] = sum;
  }
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_KERNELS_H_
