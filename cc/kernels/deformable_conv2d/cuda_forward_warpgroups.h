// CUDA kernel of the forward pass on Hopper's warpgroups.
//
// Each thread samples a share of the next turn's tile while the tensor cores multiply that of this
// turn: the product is issued, runs on its own, and is waited for a turn later.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_WARPGROUPS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_WARPGROUPS_H_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/warpgroup.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_packed_filters.h"

namespace tf_deformable::deformable_conv2d::cuda {

// A block has kWarpgroupRows output pixels and kColumns filters of one group. The tiles of a turn
// are in use until the turn after; those of the next one are written meanwhile.
inline constexpr int kForwardStages = 3;

template <typename T, int kColumns>
struct WarpgroupForwardShared {
  static constexpr int kSamplesBytes = kWarpgroupRows * kChunkBytes;
  static constexpr int kFiltersBytes = kColumns * kChunkBytes;
  char* samples;                             // [kForwardStages] tiles of kWarpgroupRows
  char* filters;                             // [kForwardStages] tiles of kColumns
  WeightedCorners<ComputeType<T>>* corners;  // [held taps, kWarpgroupRows]
  TilePixel* pixels;                         // [kWarpgroupRows]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE WarpgroupForwardShared(char* memory, int taps) {
    SharedLayout layout(memory);
    samples = layout.Take<char>(kForwardStages * kSamplesBytes);
    filters = layout.Take<char>(kForwardStages * kFiltersBytes);
    corners = layout.Take<WeightedCorners<ComputeType<T>>>(
        (taps < kMostHeldTaps ? taps : kMostHeldTaps) * kWarpgroupRows);
    pixels = layout.Take<TilePixel>(kWarpgroupRows);
    bytes = layout.size();
  }
};

// `filters` are packed (PackForForward); of `tensors`, the others are read.
template <typename T, int kColumns>
TF_DEFORMABLE_KERNEL(kThreads, kColumns > 128 ? 1 : 2)
void WarpgroupForwardKernel(Convolution g, ForwardTensors<T> tensors, const char* filters,
                            int32_t column_tiles) {
  if constexpr (kHasWarpgroupProducts) {
    using Shared = WarpgroupForwardShared<T, kColumns>;
    constexpr int kStages = kForwardStages, kDepth = kChunkBytes / sizeof(T);
    constexpr int kLanes = 16 / sizeof(T), kPieces = kChunkBytes / 16;
    constexpr int kRowsAtOnce = kThreads / kPieces;
    constexpr int kThreadRows = kWarpgroupRows / kRowsAtOnce;
    // Rows whose loads are under way at once: as many as there are registers for.
    constexpr int kRowsLoaded = kColumns == 128 ? 2 : kThreadRows;
    using Sampler = cuda::Sampler<T, true, std::is_same_v<T, float>>;
    const Shared shared(SharedMemory(), g.taps);
    const int thread = ThreadIndex(), warpgroup = thread / 128;
    const int32_t groups = g.channels / g.group_channels;
    const int32_t part = static_cast<int32_t>(BlockIndex() % (groups * column_tiles));
    const int64_t tile = BlockIndex() / (groups * column_tiles);
    const int32_t group = part / column_tiles;
    const int32_t column = part % column_tiles * kColumns;  // of the group
    const int32_t columns = Min(kColumns, g.group_filters - column);
    const int32_t filter = group * g.group_filters + column;
    const int32_t segments = g.group_channels / g.segment;
    const int32_t chunks = (g.segment + kDepth - 1) / kDepth;
    filters += static_cast<int64_t>(part) * g.taps * segments * chunks * Shared::kFiltersBytes;

    if (thread < kWarpgroupRows) {
      shared.pixels[thread] = MakeTilePixel(g, PixelOfTile(g, tile, kWarpgroupRows, thread));
    }
    WarpgroupProduct<T, kColumns> product;
    product.Clear();

    for (int32_t first_tap = 0; first_tap < g.taps; first_tap += kMostHeldTaps) {
      const int taps = Min(kMostHeldTaps, g.taps - first_tap);
      for (int32_t segment = 0; segment < segments; ++segment) {
        const int32_t first_channel = group * g.group_channels + segment * g.segment;
        const int32_t offset_group = first_channel / g.offset_group_channels;
        WaitForWarpgroupProducts<0>();
        SyncThreads();  // the last segment's tiles have been read
        for (int i = thread; i < taps * kWarpgroupRows; i += kThreads) {
          const int row = i / taps, tap = i - row * taps;
          shared.corners[tap * kWarpgroupRows + row] = MakeWeightedCorners<T, true>(
              g, shared.pixels[row], first_tap + tap,
              LoadOffset(g, tensors.offsets, tensors.mask, shared.pixels[row], offset_group,
                         first_tap + tap));
        }

        // Chunks of the segment, and for each all taps.
        const int32_t turns = chunks * taps;
        const auto copy_filters = [&](int32_t turn, int stage) {
          if (turn < turns) {
            const int32_t chunk = turn / taps, tap = first_tap + turn - chunk * taps;
            const int64_t of = (static_cast<int64_t>(tap) * segments + segment) * chunks + chunk;
            CopyPackedTile<kColumns>(filters + of * Shared::kFiltersBytes,
                                     shared.filters + stage * Shared::kFiltersBytes);
          }
          CommitCopies();
        };
        const int piece = thread % kPieces, first_row = thread / kPieces;
        const auto sample = [&](int32_t chunk, int32_t tap, int stage) {
          const int32_t at = chunk * kDepth + piece * kLanes, left = g.segment - at;
          const WeightedCorners<ComputeType<T>>* const corners =
              shared.corners + tap * kWarpgroupRows + first_row;
          char* const to = shared.samples + stage * Shared::kSamplesBytes;
          const auto store = [&](int i, const Vector16& sampled) {
            const int place = SwizzledPlace(first_row + i * kRowsAtOnce, piece);
            *reinterpret_cast<Vector16*>(to + place) = sampled;
          };
          if (left <= 0) {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) store(i, {{0, 0, 0, 0}});
            return;
          }
          const Sampler sampler(g, tensors.inputs, first_channel + at, left);
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
        };

        copy_filters(0, 0);
        SyncThreads();  // the corners are there
        sample(0, 0, 0);
        int32_t next_chunk = 0, next_tap = 0;
        int stage = 0;
        for (int32_t turn = 0; turn < turns; ++turn) {
          if (++next_tap == taps) {
            next_tap = 0;
            ++next_chunk;
          }
          const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
          WaitForCopies<0>();
          ShowToWarpgroups();
          SyncThreads();  // this turn's tiles are there, those of two turns ago have been read
          copy_filters(turn + 1, next_stage);
          product.Issue(shared.samples + stage * Shared::kSamplesBytes +
                            warpgroup * (Shared::kSamplesBytes / 2),
                        shared.filters + stage * Shared::kFiltersBytes);
          if (turn + 1 < turns) sample(next_chunk, next_tap, next_stage);
          WaitForWarpgroupProducts<1>();
          stage = next_stage;
        }
      }
    }
    WaitForWarpgroupProducts<0>();
    product.ForEachInterleavedRun([&](int row_of_warpgroup, int run, const auto& sums) {
      const int row = warpgroup * WarpgroupProduct<T, kColumns>::kRows + row_of_warpgroup;
      const int64_t pixel = shared.pixels[row].pixel;
      if (pixel < 0) return;
      float with_bias[kInterleavedRun];
#pragma unroll
      for (int k = 0; k < kInterleavedRun; ++k) {
        const bool has_bias = tensors.bias != nullptr && run + k < columns;
        with_bias[k] = sums[k] + (has_bias ? ToCompute(tensors.bias[filter + run + k]) : 0);
      }
      T* const to = tensors.output + pixel * g.filters + filter + run;
      // Filters come in whole vectors, but runs may be longer.
#pragma unroll
      for (int k = 0; k < kInterleavedRun; k += kLanes) {
        float values[kLanes];
#pragma unroll
        for (int i = 0; i < kLanes; ++i) values[i] = with_bias[k + i];
        StoreRun<T, kLanes, true>(values, run + k, columns, to + k);
      }
    });
  }
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_WARPGROUPS_H_
