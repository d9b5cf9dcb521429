// CUDA kernel of the forward pass on Hopper's warpgroups.
//
// Each thread samples a share of the next turn's tile while the tensor cores multiply that of this
// turn: the product is issued, runs on its own, and is waited for a turn later.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_WARPGROUPS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_WARPGROUPS_H_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/warpgroup.h"
#include "kernels/deformable_conv2d/cuda_forward_block.h"
#include "kernels/deformable_conv2d/cuda_packed_filters.h"

namespace tf_deformable::deformable_conv2d::cuda {

// The tiles of a turn are in use until the turn after; those of the next one are written meanwhile.
inline constexpr int kForwardStages = 3;

template <typename T, int kColumns>
struct WarpgroupForwardShared {
  static constexpr int kSamplesTileBytes = kWarpgroupRows * kChunkBytes;
  static constexpr int kFiltersTileBytes = kColumns * kChunkBytes;
  char* samples;                             // [kForwardStages] tiles of kWarpgroupRows
  char* filters;                             // [kForwardStages] tiles of kColumns
  WeightedCorners<ComputeType<T>>* corners;  // [held taps, kWarpgroupRows]
  TilePixel* pixels;                         // [kWarpgroupRows]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE WarpgroupForwardShared(char* memory, int taps) {
    SharedLayout layout(memory);
    samples = layout.Take<char>(kForwardStages * kSamplesTileBytes);
    filters = layout.Take<char>(kForwardStages * kFiltersTileBytes);
    corners = layout.Take<WeightedCorners<ComputeType<T>>>(CountHeldTaps(taps) * kWarpgroupRows);
    pixels = layout.Take<TilePixel>(kWarpgroupRows);
    bytes = layout.size();
  }
};

// Samples what a thread has of a turn, 16 bytes of channels of some rows, into a swizzled tile.
template <typename T, int kColumns>
TF_DEFORMABLE_DEVICE void SampleSwizzled(const Convolution& g, const T* inputs,
                                         const HeldTaps& held, const ChunkTap& of,
                                         const WeightedCorners<ComputeType<T>>* corners,
                                         char* tile) {
  using Sampler = cuda::Sampler<T, true, std::is_same_v<T, float>>;
  constexpr int kRowVectors = kChunkBytes / 16, kRowsAtOnce = kThreads / kRowVectors;
  constexpr int kThreadRows = kWarpgroupRows / kRowsAtOnce;
  // Rows whose loads are under way at once: as many as there are registers for.
  constexpr int kRowsLoaded = kColumns == 128 ? 2 : kThreadRows;
  const int vector = ThreadIndex() % kRowVectors, first_row = ThreadIndex() / kRowVectors;
  const int32_t at = of.chunk * kChunk<T> + vector * (16 / static_cast<int>(sizeof(T)));
  const int32_t left = g.segment - at;
  const auto store = [&](int i, const Vector16& sampled) {
    const int place = SwizzledPlace(first_row + i * kRowsAtOnce, vector);
    *reinterpret_cast<Vector16*>(tile + place) = sampled;
  };
  if (left <= 0) {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) store(i, {{0, 0, 0, 0}});
    return;
  }
  corners += of.tap * kWarpgroupRows + first_row;
  const Sampler sampler(g, inputs, held.first_channel + at, left);
#pragma unroll
  for (int first = 0; first < kThreadRows; first += kRowsLoaded) {
    typename Sampler::Loaded loaded[kRowsLoaded];
#pragma unroll
    for (int i = 0; i < kRowsLoaded; ++i) {
      sampler.Load(corners[(first + i) * kRowsAtOnce], &loaded[i]);
    }
#pragma unroll
    for (int i = 0; i < kRowsLoaded; ++i) {
      store(first + i, sampler.Finish(corners[(first + i) * kRowsAtOnce], loaded[i]));
    }
  }
}

// Adds to the product what the held taps of a segment give. Other threads may still be writing the
// corners when it is called. `filters`: the tiles of the block's columns.
template <typename T, int kColumns>
TF_DEFORMABLE_DEVICE void MultiplyHeldTaps(const Convolution& g, const T* inputs,
                                           const char* filters, const HeldTaps& held,
                                           const WarpgroupForwardShared<T, kColumns>& shared,
                                           WarpgroupProduct<T, kColumns>* product) {
  using Shared = WarpgroupForwardShared<T, kColumns>;
  const int warpgroup = ThreadIndex() / 128;
  const int32_t chunks = CeilDiv(g.segment, kChunk<T>), turns = chunks * held.count;
  const auto copy_filters = [&](const ChunkTap& of, int32_t turn) {
    const int64_t tap = held.first + of.tap;
    const int64_t tile = (tap * g.group_segments() + held.segment) * chunks + of.chunk;
    CopyPackedTile<kColumns>(filters + tile * Shared::kFiltersTileBytes,
                             shared.filters + turn % kForwardStages * Shared::kFiltersTileBytes);
    CommitCopies();
  };
  const auto sample = [&](const ChunkTap& of, int32_t turn) {
    SampleSwizzled<T, kColumns>(g, inputs, held, of, shared.corners,
                                shared.samples + turn % kForwardStages * Shared::kSamplesTileBytes);
  };
  ChunkTap next;
  copy_filters(next, 0);
  SyncThreads();  // the corners are there
  sample(next, 0);
  for (int32_t turn = 0; turn < turns; ++turn) {
    const bool more = turn + 1 < turns;
    next.Advance(held.count);
    WaitForCopies<0>();
    ShowToWarpgroups();
    SyncThreads();  // this turn's tiles are there, those of two turns ago have been read
    if (more) copy_filters(next, turn + 1);
    product->Issue(shared.samples + turn % kForwardStages * Shared::kSamplesTileBytes +
                       warpgroup * (Shared::kSamplesTileBytes / 2),
                   shared.filters + turn % kForwardStages * Shared::kFiltersTileBytes);
    if (more) sample(next, turn + 1);
    WaitForWarpgroupProducts<1>();
  }
  WaitForWarpgroupProducts<0>();
}

template <typename T, int kColumns>
TF_DEFORMABLE_DEVICE void StoreOutput(const Convolution& g, const ForwardTensors<T>& tensors,
                                      const ForwardBlock& block, const TilePixel* pixels,
                                      const WarpgroupProduct<T, kColumns>& product) {
  constexpr int kLanes = 16 / sizeof(T);
  const int first_row = ThreadIndex() / 128 * WarpgroupProduct<T, kColumns>::kRows;
  product.ForEachInterleavedRun([&](int row, int run, float (&sums)[kInterleavedRun]) {
    const int64_t pixel = pixels[first_row + row].pixel;
    if (pixel < 0) return;
    AddBias(tensors.bias, block.filter + run, block.filters - run, sums);
    T* const to = tensors.output + pixel * g.filters + block.filter + run;
    // Filters come in whole vectors, but runs may be longer.
#pragma unroll
    for (int k = 0; k < kInterleavedRun; k += kLanes) {
      float values[kLanes];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] = sums[k + i];
      StoreRun<T, kLanes, true>(values, run + k, block.filters, to + k);
    }
  });
}

// `filters` are packed (PackForForward); of `tensors`, the others are read.
template <typename T, int kColumns>
TF_DEFORMABLE_KERNEL(kThreads, kColumns > 128 ? 1 : 2)
void WarpgroupForwardKernel(Convolution g, ForwardTensors<T> tensors, const char* filters,
                            int32_t column_tiles) {
  if constexpr (kHasWarpgroupProducts) {
    using Shared = WarpgroupForwardShared<T, kColumns>;
    const Shared shared(SharedMemory(), g.taps);
    const ForwardBlock block = MakeForwardBlock(g, column_tiles, kColumns);
    StorePixels<kWarpgroupRows>(g, block.tile, shared.pixels);
    filters += static_cast<int64_t>(block.number) * g.taps * g.group_segments() *
               CeilDiv(g.segment, kChunk<T>) * Shared::kFiltersTileBytes;
    WarpgroupProduct<T, kColumns> product;
    product.Clear();
    ForEachHeldTaps(g, block.group, [&](const HeldTaps& held) {
      SyncThreads();  // the last segment's tiles have been read
      StoreCorners<T, kWarpgroupRows, true>(g, tensors,
                                            held.first_channel / g.offset_group_channels,
                                            held.first, held.count, shared.pixels, shared.corners);
      MultiplyHeldTaps(g, tensors.inputs, filters, held, shared, &product);
    });
    StoreOutput(g, tensors, block, shared.pixels, product);
  }
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_WARPGROUPS_H_
