// CUDA kernels of the depthwise deformable convolution, and their launches.
//
// Each channel is a group of its own, with one filter: no product, the time goes into reading. A
// block has kDepthwisePixels pixels and walks over chunks of 128 bytes of channels, a thread to
// each 16 bytes of a pixel.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DEPTHWISE_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DEPTHWISE_H_

#include <algorithm>
#include <cstdint>

#include "kernels/deformable_conv2d/cuda_launch.h"

namespace tf_deformable::deformable_conv2d::cuda {

inline constexpr int kDepthwisePixels = kThreads * 16 / kChunkBytes;

// How channels are shared out: a block has some chunks of a segment, a range.
struct ChannelRanges {
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
    Widen<T>(left > 0 ? LoadGlobal16(from) : Vector16{{0, 0, 0, 0}}, values);
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = i < left ? ToCompute(from[i]) : ComputeType<T>{0};
  }
}

template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void DepthwiseForwardKernel(Convolution g, ForwardTensors<T> tensors, ChannelRanges ranges) {
  using A = ComputeType<T>;
  constexpr int kLanes = 16 / sizeof(T), kRowThreads = kChunk<T> / kLanes;
  const DepthwiseShared<T> shared(SharedMemory(), g.taps);
  const int32_t range = static_cast<int32_t>(BlockIndex() % ranges.ranges);
  const int64_t tile = BlockIndex() / ranges.ranges;
  const int32_t segment = range / ranges.ranges_per_segment;
  const int32_t first_chunk = range % ranges.ranges_per_segment * ranges.chunks_per_range;
  const int32_t chunks = Min(ranges.chunks_per_range, CeilDiv(g.segment, kChunk<T>) - first_chunk);
  const int32_t offset_group = segment * g.segment / g.offset_group_channels;

  StorePixels<kDepthwisePixels>(g, tile, shared.pixels);
  SyncThreads();
  StoreCorners<T, kDepthwisePixels, kVectors>(g, tensors, offset_group, 0, g.taps, shared.pixels,
                                              shared.corners);
  SyncThreads();
  const int row = ThreadIndex() / kRowThreads;
  const int64_t pixel = shared.pixels[row].pixel;
  if (pixel < 0) return;
  for (int32_t chunk = first_chunk; chunk < first_chunk + chunks; ++chunk) {
    const int32_t at = chunk * kChunk<T> + ThreadIndex() % kRowThreads * kLanes;
    const int32_t channel = segment * g.segment + at, left = g.segment - at;
    A sums[kLanes] = {};
    Sampler<T, kVectors, false> sampler(g, tensors.inputs, channel, left);
#pragma unroll 3
    for (int32_t tap = 0; tap < g.taps; ++tap) {
      const WeightedCorners<A>& corners = shared.corners[tap * kDepthwisePixels + row];
      A values[kLanes], weights[kLanes];
      typename Sampler<T, kVectors, false>::Loaded loaded;
      sampler.Load(corners, &loaded);
      LoadLanes<T, kVectors>(tensors.filters + static_cast<int64_t>(tap) * g.channels + channel,
                             left, weights);
      sampler.Sum(corners, loaded, values);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sums[i] += weights[i] * values[i];
    }
    AddBias(tensors.bias, channel, left, sums);
    StoreRun<T, kLanes, kVectors>(sums, 0, left, tensors.output + pixel * g.channels + channel);
  }
}

// A block has a chunk of channels, a tap and a split of the pixels; partials [splits, taps, C].
template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void DepthwiseFiltersGradientKernel(Convolution g, BackwardTensors<T> tensors,
                                    int64_t pixels_per_split, ComputeType<T>* partials) {
  using A = ComputeType<T>;
  constexpr int kLanes = 16 / sizeof(T), kRowThreads = kChunk<T> / kLanes;
  const int32_t segment_chunks = CeilDiv(g.segment, kChunk<T>);
  const int32_t chunks = segment_chunks * g.segments();
  const int32_t chunk = static_cast<int32_t>(BlockIndex() % chunks);
  const int32_t tap = static_cast<int32_t>(BlockIndex() / chunks % g.taps);
  const int64_t split = BlockIndex() / chunks / g.taps;
  const int row = ThreadIndex() / kRowThreads;
  const int32_t segment = chunk / segment_chunks;
  const int32_t at = chunk % segment_chunks * kChunk<T> + ThreadIndex() % kRowThreads * kLanes;
  const int32_t channel = segment * g.segment + at, left = g.segment - at;
  const int32_t offset_group = segment * g.segment / g.offset_group_channels;
  const int64_t first_pixel = g.first_pixel + split * pixels_per_split;
  const int64_t last_pixel = Min(first_pixel + pixels_per_split, g.last_pixel);

  A sums[kLanes] = {};
  Sampler<T, kVectors, false> sampler(g, tensors.inputs, channel, left);
#pragma unroll 2
  for (int64_t pixel = first_pixel + row; pixel < last_pixel; pixel += kDepthwisePixels) {
    const TilePixel p = MakeTilePixel(g, pixel);
    const WeightedCorners<A> corners = MakeWeightedCorners<T, kVectors>(
        g, p, tap, LoadOffset(g, tensors.offsets, tensors.mask, p, offset_group, tap));
    A values[kLanes], gradients[kLanes];
    typename Sampler<T, kVectors, false>::Loaded loaded;
    sampler.Load(corners, &loaded);
    LoadLanes<T, kVectors>(tensors.grad_output + pixel * g.channels + channel, left, gradients);
    sampler.Sum(corners, loaded, values);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sums[i] += gradients[i] * values[i];
  }
  A* const shared = reinterpret_cast<A*>(SharedMemory());  // [kDepthwisePixels, kChunk]
  const int column = ThreadIndex() % kRowThreads * kLanes;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) shared[row * kChunk<T> + column + i] = sums[i];
  SyncThreads();
  if (row > 0) return;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    if (i >= left) break;
    A sum = 0;
    for (int r = 0; r < kDepthwisePixels; ++r) sum += shared[r * kChunk<T> + column + i];
    partials[(split * g.taps + tap) * g.channels + channel + i] = sum;
  }
}

// --- Launching -----------------------------------------------------------------------------------

// Shares out a segment's chunks so that there are enough blocks to keep all multiprocessors busy.
inline ChannelRanges ChooseRanges(const Convolution& c, int chunk, int64_t tiles,
                                  int multiprocessors) {
  constexpr int64_t kBlocksWanted = 4;  // on each multiprocessor, two of which run at once
  const int64_t chunks = CeilDiv(c.segment, chunk);
  const int64_t wanted = CeilDiv(kBlocksWanted * multiprocessors, tiles * c.segments());
  ChannelRanges ranges;
  ranges.chunks_per_range = CeilDiv(chunks, std::min(wanted, chunks));
  ranges.ranges_per_segment = CeilDiv(chunks, ranges.chunks_per_range);
  ranges.ranges = ranges.ranges_per_segment * c.segments();
  return ranges;
}

template <typename T, bool kVectors>
Status LaunchDepthwiseForward(Convolution c, int multiprocessors, const ForwardTensors<T>& tensors,
                              void* stream) {
  const int64_t tiles = ChooseTiles(kDepthwisePixels, &c);
  const ChannelRanges ranges = ChooseRanges(c, kChunk<T>, tiles, multiprocessors);
  const DepthwiseShared<T> shared(nullptr, c.taps);
  return Launch(kOp, DepthwiseForwardKernel<T, kVectors>, tiles * ranges.ranges, kThreads,
                shared.bytes, stream, c, tensors, ranges);
}

// Of the gradient of the filters, to a split of the pixels.
template <typename T>
int64_t CountDepthwiseFiltersBlocks(const Convolution& c) {
  return static_cast<int64_t>(c.taps) * c.segments() * CeilDiv(c.segment, kChunk<T>);
}

template <typename T, bool kVectors>
Status LaunchDepthwiseFiltersGradient(const Convolution& c, const BackwardTensors<T>& tensors,
                                      int32_t splits, ComputeType<T>* partials, void* stream) {
  const int64_t pixels_per_split = RoundUp(CeilDiv(c.pixels(), splits), kDepthwisePixels);
  return Launch(kOp, DepthwiseFiltersGradientKernel<T, kVectors>,
                CountDepthwiseFiltersBlocks<T>(c) * splits, kThreads,
                kDepthwisePixels * kChunk<T> * static_cast<int64_t>(sizeof(ComputeType<T>)), stream,
                c, tensors, pixels_per_split, partials);
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DEPTHWISE_H_
