// Where the output pixels of a CUDA kernel sample, and what: positions, corners, values.
//
// Where a pixel samples is worked out once per (tap, offset group) and used for all channels.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_SAMPLING_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_SAMPLING_H_

#include <cstdint>

#include "kernels/base/integers.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/primitives.h"
#include "kernels/deformable_conv2d/cuda_convolution.h"
#include "kernels/deformable_conv2d/tensors.h"
#include "kernels/sampling/bilinear.h"

namespace tf_deformable::deformable_conv2d::cuda {

using namespace tf_deformable::cuda;

inline constexpr int kThreads = 256;  // of a block

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
  const int32_t down = CeilDiv(g.output_height, g.tile_rows);
  const int32_t across = CeilDiv(g.output_width, g.tile_columns);
  const int64_t image = tile / (static_cast<int64_t>(down) * across);
  const int32_t within = static_cast<int32_t>(tile - image * down * across);
  const int32_t oy = within / across * g.tile_rows + i / g.tile_columns;
  const int32_t ox = within % across * g.tile_columns + i % g.tile_columns;
  if (oy >= g.output_height || ox >= g.output_width) return -1;
  return (g.first_pixel / g.output_size() + image) * g.output_size() +
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

// The output pixels of a tile, for all threads of its block; a thread to each.
template <int kRows>
TF_DEFORMABLE_DEVICE void StorePixels(const Convolution& g, int64_t tile, TilePixel* pixels) {
  static_assert(kRows <= kThreads);
  const int row = ThreadIndex();
  if (row < kRows) pixels[row] = MakeTilePixel(g, PixelOfTile(g, tile, kRows, row));
}

// The corners [taps, kRows] of a tile's pixels, for `taps` taps from first_tap on.
template <typename T, int kRows, bool kVectors>
TF_DEFORMABLE_DEVICE void StoreCorners(const Convolution& g, const ForwardTensors<T>& tensors,
                                       int32_t offset_group, int32_t first_tap, int taps,
                                       const TilePixel* pixels,
                                       WeightedCorners<ComputeType<T>>* corners) {
  for (int i = ThreadIndex(); i < taps * kRows; i += kThreads) {
    const int row = i / taps, tap = i - row * taps;
    corners[tap * kRows + row] = MakeWeightedCorners<T, kVectors>(
        g, pixels[row], first_tap + tap,
        LoadOffset(g, tensors.offsets, tensors.mask, pixels[row], offset_group, first_tap + tap));
  }
}

// Samples 16 bytes of channels: Load, and when the loads have had time, Finish with what they
// brought. Several may be under way. kVectors: all runs of channels are whole and aligned to 16
// bytes. kRound: the samples are rounded to TF32.
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

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_SAMPLING_H_
