// CUDA kernel of the forward pass, and its launches.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_H_

#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/deformable_conv2d/cuda_depthwise.h"
#include "kernels/deformable_conv2d/cuda_forward_warpgroups.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

// A block has kRows output pixels and kColumns filters of one group.
template <typename Tile>
struct ForwardShared {
  using T = typename Tile::T;
  static constexpr int kDepth = kChunkBytes / sizeof(T);
  static constexpr int kSamplesRow = PaddedRow<T>(kDepth, false);
  static constexpr int kFiltersRow = PaddedRow<T>(Tile::kColumns, true);
  TilePixel* pixels;                         // [kRows]
  WeightedCorners<ComputeType<T>>* corners;  // [held taps, kRows]
  T* samples;                                // [2, kRows, kSamplesRow]
  T* filters;                                // [Tile::kStages, kDepth, kFiltersRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE ForwardShared(char* memory, int taps) {
    SharedLayout layout(memory);
    pixels = layout.Take<TilePixel>(Tile::kRows);
    corners = layout.Take<WeightedCorners<ComputeType<T>>>(
        (taps < kMostHeldTaps ? taps : kMostHeldTaps) * Tile::kRows);
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
  constexpr int kThreadRows = Tile::kRows / kRowsAtOnce;
  static_assert(kThreadRows <= Tile::kSteps,
                "a row of each thread is sampled during a turn of the product");
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

  for (int32_t first_tap = 0; first_tap < g.taps; first_tap += kMostHeldTaps) {
    const int taps = Min(kMostHeldTaps, g.taps - first_tap);
    for (int32_t segment = 0; segment < segments; ++segment) {
      const int32_t first_channel = group * g.group_channels + segment * g.segment;
      const int32_t offset_group = first_channel / g.offset_group_channels;
      SyncThreads();  // the last segment's tiles have been read
      for (int i = thread; i < taps * Tile::kRows; i += kThreads) {
        const int row = i / taps, tap = i - row * taps;
        shared.corners[tap * Tile::kRows + row] = MakeWeightedCorners<T, Tile::kVectors>(
            g, shared.pixels[row], first_tap + tap,
            LoadOffset(g, tensors.offsets, tensors.mask, shared.pixels[row], offset_group,
                       first_tap + tap));
      }

      // Chunks of the segment, and for each all taps.
      const int32_t turns = chunks * taps;
      const auto copy_filters = [&](int32_t turn) {
        if (turn < turns) {
          const int32_t chunk = turn / taps, tap = turn - chunk * taps;
          const int64_t channel = static_cast<int64_t>(first_tap + tap) * g.group_channels +
                                  segment * g.segment + chunk * Shared::kDepth;
          CopyTile<T, Shared::kDepth, Tile::kColumns, Tile::kVectors>(
              tensors.filters + channel * g.filters + filter, g.filters,
              g.segment - chunk * Shared::kDepth, columns,
              shared.filters + turn % Tile::kStages * Shared::kDepth * Shared::kFiltersRow,
              Shared::kFiltersRow);
        }
        CommitCopies();
      };
      using TileSampler = Sampler<T, Tile::kVectors, Tile::kRound>;
      TileSampler sampler;
      typename TileSampler::Loaded loaded;
      const int vector = thread % (Shared::kDepth / Tile::kLanes) * Tile::kLanes;
      const int first_row = thread / (Shared::kDepth / Tile::kLanes);
      const auto corners_of = [&](int tap,
                                  int thread_row) -> const WeightedCorners<ComputeType<T>>& {
        return shared.corners[tap * Tile::kRows + first_row + thread_row * kRowsAtOnce];
      };
      const auto load = [&](int chunk, int tap, int thread_row) {
        const int32_t at = chunk * Shared::kDepth + vector;
        sampler = TileSampler(g, tensors.inputs, first_channel + at, g.segment - at);
        sampler.Load(corners_of(tap, thread_row), &loaded);
      };
      const auto finish = [&](int tap, int thread_row, int stage) {
        const int row = stage * Tile::kRows + first_row + thread_row * kRowsAtOnce;
        *reinterpret_cast<Vector16*>(shared.samples + row * Shared::kSamplesRow + vector) =
            sampler.Finish(corners_of(tap, thread_row), loaded);
      };

#pragma unroll
      for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_filters(stage);
      SyncThreads();  // the corners are there
#pragma unroll
      for (int thread_row = 0; thread_row < kThreadRows; ++thread_row) {
        load(0, 0, thread_row);
        finish(0, thread_row, 0);
      }
      int32_t next_chunk = 0, next_tap = 0;
      for (int32_t turn = 0; turn < turns; ++turn) {
        if (++next_tap == taps) {
          next_tap = 0;
          ++next_chunk;
        }
        const bool more = turn + 1 < turns;
        WaitForCopies<Tile::kStages - 2>();
        SyncThreads();  // this turn's tiles are there, those of the last one have been read
        copy_filters(turn + Tile::kStages - 1);
        const T* const a =
            shared.samples + (turn % 2 * Tile::kRows + Tile::FirstRow(warp)) * Shared::kSamplesRow;
        const T* const b = shared.filters +
                           turn % Tile::kStages * Shared::kDepth * Shared::kFiltersRow +
                           Tile::FirstColumn(warp);
#pragma unroll
        for (int k = 0; k < Tile::kSteps; ++k) {
          constexpr int kDepth = Tile::Product::kDepth;
          if (k < kThreadRows && more) load(next_chunk, next_tap, k);
          product.template Step<Contiguous::kDepth, Contiguous::kOutput, true, false>(
              a + k * kDepth, Shared::kSamplesRow, b + k * kDepth * Shared::kFiltersRow,
              Shared::kFiltersRow, lane);
          if (k < kThreadRows && more) finish(next_tap, k, (turn + 1) % 2);
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

// --- Launching -----------------------------------------------------------------------------------

// To sample a value costs about as much as to multiply it with so many filters.
inline constexpr int64_t kSamplingCost = 128;

// The same where the product costs the threads nothing (cuda_forward_warpgroups.h).
inline constexpr int64_t kWarpgroupSamplingCost = 1000;

// Estimated time of a forward pass that is cut into such tiles.
inline int64_t ForwardCost(const Convolution& c, int rows, int columns, int64_t sampling_cost,
                           int multiprocessors) {
  Convolution copy = c;
  const int64_t blocks = ChooseTiles(rows, &copy) * CeilDiv(c.group_filters, columns) *
                         (c.channels / c.group_channels);
  return CeilDiv(blocks, multiprocessors) * rows * (sampling_cost + columns);
}

template <typename Tile>
Status LaunchForward(Convolution c, const ForwardTensors<typename Tile::T>& tensors, void* stream) {
  const int32_t column_tiles = CeilDiv(c.group_filters, Tile::kColumns);
  const int64_t tiles = ChooseTiles(Tile::kRows, &c);
  const ForwardShared<Tile> shared(nullptr, c.taps);
  return Launch(kOp, ForwardKernel<Tile>, tiles * (c.channels / c.group_channels) * column_tiles,
                kThreads, shared.bytes, stream, c, tensors, column_tiles);
}

// Launches the kernel with the cheapest of some tiles.
template <typename First, typename... Others>
Status LaunchCheapestForward(const Convolution& c, const DeviceLimits& limits,
                             const CudaOptions& options,
                             const ForwardTensors<typename First::T>& tensors, void* stream) {
  using T = typename First::T;
  Status (*launch)(Convolution, const ForwardTensors<T>&, void*) = nullptr;
  int64_t least = std::numeric_limits<int64_t>::max();
  const auto consider = [&](auto tile) {
    using Tile = decltype(tile);
    const int rows = options.forward_tile_rows, columns = options.forward_tile_columns;
    if (rows != 0 && (rows != Tile::kRows || columns != Tile::kColumns)) return;
    const int64_t cost =
        ForwardCost(c, Tile::kRows, Tile::kColumns, kSamplingCost, limits.multiprocessors);
    const int64_t bytes = ForwardShared<Tile>(nullptr, c.taps).bytes;
    if (cost >= least || bytes > limits.shared_bytes_per_block) return;
    least = cost;
    launch = &LaunchForward<Tile>;
  };
  consider(First());
  (consider(Others()), ...);
  if (launch == nullptr) {
    return Status(Status::Code::kInvalidArgument,
                  std::string(kOp) +
                      ": there is no tile that fits the device and has the rows and columns " +
                      ToString({options.forward_tile_rows, options.forward_tile_columns}));
  }
  return launch(c, tensors, stream);
}

// How many filters a warpgroup's tile has; 0: warpgroups are not used.
template <typename T>
int32_t WarpgroupForwardColumns(const Convolution& c, const DeviceLimits& limits,
                                const CudaOptions& options) {
  const int rows = options.forward_tile_rows;
  if (std::is_same_v<T, double> || !limits.has_warpgroup_products || UsesFma<T>(options) ||
      (rows != 0 && rows != kWarpgroupRows)) {
    return 0;
  }
  int32_t best = 0;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const int32_t columns : {64, 128, 256}) {
    if (rows != 0 && columns != options.forward_tile_columns) continue;
    if (!PacksWell<T>(c, PackForForward(c, columns))) continue;
    const int64_t cost =
        ForwardCost(c, kWarpgroupRows, columns, kWarpgroupSamplingCost, limits.multiprocessors);
    if (cost < least) {
      least = cost;
      best = columns;
    }
  }
  return best;
}

template <typename T, int kColumns>
Status LaunchWarpgroupForward(Convolution c, const ForwardTensors<T>& tensors, void* workspace,
                              void* stream) {
  const PackedFilters packed = PackForForward(c, kColumns);
  const Status status = PackFilters(packed, tensors.filters, workspace, stream);
  if (!status.ok()) return status;
  const int64_t tiles = ChooseTiles(kWarpgroupRows, &c);
  return Launch(kOp, WarpgroupForwardKernel<T, kColumns>,
                tiles * packed.groups * packed.column_tiles(), kThreads,
                WarpgroupForwardShared<T, kColumns>(nullptr, c.taps).bytes, stream, c, tensors,
                static_cast<const char*>(workspace), packed.column_tiles());
}

template <typename T>
ForwardPlan<T>::ForwardPlan(const Geometry& geometry, const CudaOptions& options)
    : geometry_(geometry), options_(options) {
  if (geometry_.output_pixels() == 0) return;
  Convolution c;
  status_ = MakeConvolution(geometry_, &c);
  if (status_.ok()) status_ = GetDeviceLimits(kOp, options_, &limits_);
  if (!status_.ok() || geometry_.is_depthwise()) return;
  warpgroup_columns_ = WarpgroupForwardColumns<T>(c, limits_, options_);
  if (warpgroup_columns_ > 0) {
    workspace_bytes_ = PackForForward(c, warpgroup_columns_).template bytes<T>();
  }
}

template <typename T>
Status ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, void* workspace, void* stream) const {
  if (!status_.ok() || geometry_.output_pixels() == 0) return status_;
  Convolution c;
  if (const Status status = MakeConvolution(geometry_, &c); !status.ok()) return status;
  const bool depthwise = geometry_.is_depthwise();
  const bool vectorised =
      IsVectorised(c, depthwise, 16 / sizeof(T), {tensors.inputs, tensors.filters, tensors.output});
  if (depthwise && DepthwiseShared<T>(nullptr, c.taps).bytes <= limits_.shared_bytes_per_block) {
    return (vectorised
                ? LaunchDepthwiseForward<T, true>
                : LaunchDepthwiseForward<T, false>)(c, limits_.multiprocessors, tensors, stream);
  }
  if (depthwise) c.segment = 1;  // the general kernels take each channel for a group
  const bool uses_fma = UsesFma<T>(options_);
  if constexpr (!std::is_same_v<T, double>) {
    if (vectorised && warpgroup_columns_ > 0) {
      return (warpgroup_columns_ == 64 ? LaunchWarpgroupForward<T, 64>
              : warpgroup_columns_ == 128
                  ? LaunchWarpgroupForward<T, 128>
                  : LaunchWarpgroupForward<T, 256>)(c, tensors, workspace, stream);
    }
    if (!uses_fma && vectorised && !depthwise) {
      return LaunchCheapestForward<
          Tile<T, false, 64, 64, 32, 16, true>, Tile<T, false, 64, 128, 32, 32, true>,
          Tile<T, false, 128, 64, 32, 32, true>, Tile<T, false, 128, 128, 64, 32, true>,
          Tile<T, false, 128, 256, 64, 64, true>>(c, limits_, options_, tensors, stream);
    }
  }
  return WithTile<T, 64, 64, 32, 16>(uses_fma, vectorised && !depthwise, [&](auto tile) {
    return LaunchForward<decltype(tile)>(c, tensors, stream);
  });
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_H_
