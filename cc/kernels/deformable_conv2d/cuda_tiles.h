// The CUDA kernels of the deformable convolution: tiles of output pixels and of samples, which all
// passes share.
//
// clang-format off: equations.
//   y[p,f]          = bias[f] + sum_k sum_c filters[k,c,f] * s[p,k,c]
//   s[p,k,c]        = mask[p,k] * sum_r G(r,q) x[r,c],  q = p*stride - pad + k*dilation + offset[p,k]
//   dfilters[k,c,f] = sum_p s[p,k,c] * dy[p,f]
//   ds[p,k,c]       = sum_f filters[k,c,f] * dy[p,f],  scattered to dx, dotted with x for doffset
// clang-format on
//
// s exists only as tiles in shared memory, between the sampling on one side and the product on the
// other; ds is written to the workspace, for some images at a time, and gathered from there. Where
// a pixel samples is worked out once per (tap, offset group) and used for all channels. Channels
// are walked in chunks of 128 bytes and, within a chunk, all taps: these read nearly the same
// pixels, which are then in the first-level cache. While a chunk is multiplied, the loads of the
// next one are under way.
//
// Channels are cut into segments: the largest runs that lie in one group and in one offset group.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_TILES_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_TILES_H_

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
  int32_t segment;  // how many channels a segment has
  // A tile has tile_rows x tile_columns output pixels of one image. If tile_columns is 0, it has so
  // many that follow each other, whatever their images.
  int32_t tile_rows, tile_columns;
};

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kMostHeldTaps = 9;  // a block holds the sampling points of so many taps
inline constexpr int kChunkBytes = 128;  // a chunk: neighbouring channels of so many bytes

// --- Pixels --------------------------------------------------------------------------------------

// a / b, which is below 2^31. Divisions of 32 bits take a fifth of the time of those of 64.
TF_DEFORMABLE_DEVICE int32_t Quotient(int64_t a, int32_t b) {
  if (a >> 32 == 0) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
  }
  return static_cast<int32_t>(a / b);
}

struct TilePixel {
  int64_t pixel;  // of the output [N*Ho*Wo, F]; -1: none
  int32_t image;
  int32_t y, x;  // position of the first tap without its offset
};

TF_DEFORMABLE_DEVICE TilePixel MakeTilePixel(const Convolution& g, int64_t pixel) {
  if (pixel < g.first_pixel || pixel >= g.last_pixel) return {-1, 0, 0, 0};
  const int32_t size = g.output_height * g.output_width;
  const int32_t image = Quotient(pixel, size);
  const int32_t within = static_cast<int32_t>(pixel - static_cast<int64_t>(image) * size);
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

// As it is loaded: see LoadRawSampling.
template <typename T>
struct RawOffset {
  RawSampling<const T> dy, dx, mask;
};

template <typename T>
TF_DEFORMABLE_DEVICE RawOffset<T> LoadRawOffset(const Convolution& g,
                                                const SamplingTensor<const T>& offsets,
                                                const SamplingTensor<const T>& mask,
                                                const TilePixel& p, int32_t offset_group,
                                                int32_t tap) {
  if (p.pixel < 0) return {0, 0, 0};
  const int64_t at = (p.pixel * g.offset_groups + offset_group) * g.taps + tap;
  RawOffset<T> raw = {LoadRawSampling(offsets, 2 * at), LoadRawSampling(offsets, 2 * at + 1), 0};
  if (mask) raw.mask = LoadRawSampling(mask, at);
  return raw;
}
template <typename T>
TF_DEFORMABLE_DEVICE Offset<ComputeType<T>> FromRawOffset(const SamplingTensor<const T>& offsets,
                                                          const SamplingTensor<const T>& mask,
                                                          const RawOffset<T>& raw) {
  using A = ComputeType<T>;
  return {FromRawSampling(offsets, raw.dy), FromRawSampling(offsets, raw.dx),
          mask ? FromRawSampling(mask, raw.mask) : A{1}};
}

template <typename T>
TF_DEFORMABLE_DEVICE Offset<ComputeType<T>> LoadOffset(const Convolution& g,
                                                       const SamplingTensor<const T>& offsets,
                                                       const SamplingTensor<const T>& mask,
                                                       const TilePixel& p, int32_t offset_group,
                                                       int32_t tap) {
  return FromRawOffset(offsets, mask, LoadRawOffset(g, offsets, mask, p, offset_group, tap));
}

// `row`: as MakeSamplingPoint's.
template <typename A>
TF_DEFORMABLE_DEVICE SamplingPoint<A> PointOf(const Convolution& g, const TilePixel& p, int32_t tap,
                                              const Offset<A>& offset, int32_t row) {
  if (p.pixel < 0) return {0, 0, 0, 0};
  const int32_t ky = tap / g.kernel_width, kx = tap - ky * g.kernel_width;
  return MakeSamplingPoint<A>(static_cast<A>(p.y + ky * g.dilation_y) + offset.dy,
                              static_cast<A>(p.x + kx * g.dilation_x) + offset.dx, g.height,
                              g.width, row);
}

// How channels are shared out: a block has some chunks of a segment, a "range".
struct ChannelRanges {
  int32_t chunks_per_range, ranges_per_segment, ranges;
};

// --- Sampling ------------------------------------------------------------------------------------

// What sampling reads of a SamplingPoint: the weights of its corners, which of these are on the map
// (bit j: corner j), and where in the inputs the first one is, which may be off the map. Read one
// by one, that is a pixel; read 16 bytes at a time, so many times these from the first element on,
// for then an address takes one multiplication of 32 bits (IsVectorised has seen to it that it
// fits).
template <typename A>
struct alignas(8) WeightedCorners {
  A weight[4];
  int64_t place;  // times 16, plus the bits

  TF_DEFORMABLE_DEVICE uint32_t present() const { return static_cast<uint32_t>(place) & 15; }
  TF_DEFORMABLE_DEVICE int64_t at() const { return place >> 4; }
};

template <typename T, bool kVectors>
TF_DEFORMABLE_DEVICE WeightedCorners<ComputeType<T>> MakeWeightedCorners(
    const Convolution& g, const TilePixel& p, int32_t tap, const Offset<ComputeType<T>>& offset) {
  using A = ComputeType<T>;
  constexpr int kLanes = 16 / sizeof(T);
  const SamplingPoint<A> point = PointOf(g, p, tap, offset, g.width);
  WeightedCorners<A> corners;
  CornerWeights(point.fraction_y, point.fraction_x, offset.mask, corners.weight);
  const int64_t pixel = static_cast<int64_t>(p.image) * g.height * g.width + point.pixel;
  corners.place = (kVectors ? pixel * (g.channels / kLanes) : pixel) * 16 + point.corners;
  return corners;
}

// Samples 16 bytes of channels: Load, and when the loads have had time, Finish with what they
// brought, of which there may be several. kVectors: all runs
// of channels are whole and aligned to 16 bytes. kRound: the samples are rounded to TF32.
template <typename T, bool kVectors, bool kRound>
class Sampler {
 public:
  using A = ComputeType<T>;
  static constexpr int kLanes = 16 / sizeof(T);

  Sampler() = default;
  // For channels from `channel` on, of which there are `left`; what is beyond has no meaning in
  // sums of vectors, and is 0 elsewhere.
  TF_DEFORMABLE_DEVICE Sampler(const Convolution& g, const T* inputs, int32_t channel, int32_t left)
      : left_(left), pixel_(g.channels) {
    const int64_t row = static_cast<int64_t>(g.width) * g.channels;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      first_[j] = inputs + channel + (j & 1) * g.channels + (j >> 1) * row;
    }
  }

  struct Loaded {
    Vector16 values[4];  // at the corners; not used without kVectors
  };

  TF_DEFORMABLE_DEVICE void Load(const WeightedCorners<A>& corners, Loaded* loaded) const {
    if constexpr (kVectors) {
      const int32_t at = static_cast<int32_t>(corners.at());
      const uint32_t present = left_ > 0 ? corners.present() : 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        loaded->values[j] = (present >> j & 1) != 0
                                ? LoadGlobal16(reinterpret_cast<const Vector16*>(first_[j]) + at)
                                : Vector16{{0, 0, 0, 0}};
      }
    }
  }

  TF_DEFORMABLE_DEVICE void Sum(const WeightedCorners<A>& corners, const Loaded& loaded,
                                A (&sums)[kLanes]) const {
    if constexpr (kVectors) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        A values[kLanes];
        Widen<T>(loaded.values[j], values);
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          sums[i] =
              j == 0 ? corners.weight[j] * values[i] : sums[i] + corners.weight[j] * values[i];
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        sums[i] = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool present = i < left_ && (corners.present() >> j & 1) != 0;
          const A value = present ? ToCompute(first_[j][corners.at() * pixel_ + i]) : A{0};
          if (i < left_) sums[i] += corners.weight[j] * value;
        }
      }
    }
  }

  // The same, as elements of a tile that will be multiplied.
  TF_DEFORMABLE_DEVICE Vector16 Finish(const WeightedCorners<A>& corners,
                                       const Loaded& loaded) const {
    // Not even a NaN weight may reach channels that do not exist.
    if (kVectors && left_ <= 0) return {{0, 0, 0, 0}};
    A sums[kLanes];
    Sum(corners, loaded, sums);
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
  int32_t left_, pixel_;  // channels, and elements from a pixel to the next
  const T* first_[4];     // of the channels, at the corners of pixel 0
};

// --- Copying tiles into shared memory ------------------------------------------------------------

// Starts to copy rows [0, rows) of columns [0, columns) of a matrix into a tile of kRows x
// kColumns, whose rows are `to_row` apart; the rest of the tile becomes 0. kInterleaved: the rows,
// which are columns of a product, are put where Interleaved says.
template <typename T, int kRows, int kColumns, bool kVectors, bool kInterleaved = false>
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
    T* const target = to + (kInterleaved ? Interleaved(row) : row) * to_row + column;
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
template <typename T_, bool kFma_, int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_,
          bool kVectors_>
struct Tile {
  using T = T_;
  static constexpr bool kFma = kFma_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr bool kVectors = kVectors_;
  static constexpr bool kRound = std::is_same_v<T, float> && !kFma;
  // Whether lanes can hold longer runs of the result.
  static constexpr bool kInterleaves = !kFma && kVectors && kWarpColumns % kInterleavedColumns == 0;
  using Product = std::conditional_t<kFma, FmaProduct<T, kWarpRows, kWarpColumns>,
                                     WarpProduct<T, kWarpRows, kWarpColumns>>;
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr int kSteps = kChunkBytes / 32;  // a chunk takes so many steps of the product
  // How many tiles of an operand are in shared memory: the one in use, and those that are copied in
  // the background. The product of large ones takes so long that one ahead is enough, and two
  // blocks fit on a multiprocessor.
  static constexpr int kStages = kRows * kColumns >= 128 * 128 ? 2 : 3;
  static_assert(kRows / kWarpRows * (kColumns / kWarpColumns) == kWarps, "a part for each warp");

  static TF_DEFORMABLE_DEVICE int FirstRow(int warp) {
    return warp / (kColumns / kWarpColumns) * kWarpRows;
  }
  static TF_DEFORMABLE_DEVICE int FirstColumn(int warp) {
    return warp % (kColumns / kWarpColumns) * kWarpColumns;
  }
};

// Takes parts of a block's shared memory, one after the other. The host runs it too, from null, to
// learn how much to ask for.
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

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_TILES_H_
