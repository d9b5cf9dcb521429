// CUDA kernel of the forward pass, and its launches.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_H_

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "kernels/deformable_conv2d/cuda_depthwise.h"
#include "kernels/deformable_conv2d/cuda_forward_block.h"
#include "kernels/deformable_conv2d/cuda_forward_warpgroups.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

template <typename Tile>
struct ForwardShared {
  using T = typename Tile::T;
  static constexpr int kSamplesRow = PaddedRow<T>(kChunk<T>, false);
  static constexpr int kFiltersRow = PaddedRow<T>(Tile::kColumns, true);
  TilePixel* pixels;                         // [kRows]
  WeightedCorners<ComputeType<T>>* corners;  // [held taps, kRows]
  T* samples;                                // [2, kRows, kSamplesRow]
  T* filters;                                // [Tile::kStages, kChunk, kFiltersRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE ForwardShared(char* memory, int taps) {
    SharedLayout layout(memory);
    pixels = layout.Take<TilePixel>(Tile::kRows);
    corners = layout.Take<WeightedCorners<ComputeType<T>>>(CountHeldTaps(taps) * Tile::kRows);
    samples = layout.Take<T>(2 * Tile::kRows * kSamplesRow);
    filters = layout.Take<T>(Tile::kStages * kChunk<T> * kFiltersRow);
    bytes = layout.size();
  }
};

// What a thread samples of a turn: 16 bytes of channels of some of the tile's rows.
template <typename Tile>
class ForwardSamples {
 public:
  using T = typename Tile::T;
  using Shared = ForwardShared<Tile>;
  static constexpr int kRowThreads = kChunk<T> / Tile::kLanes;
  static constexpr int kRowsAtOnce = kThreads / kRowThreads;
  static constexpr int kThreadRows = Tile::kRows / kRowsAtOnce;
  static_assert(kThreadRows <= Tile::kDepthSteps,
                "a row of each thread is sampled during a depth step");

  TF_DEFORMABLE_DEVICE ForwardSamples(const Convolution& g, const T* inputs, const HeldTaps& held,
                                      const Shared& shared)
      : g_(g),
        inputs_(inputs),
        held_(held),
        shared_(shared),
        channel_(ThreadIndex() % kRowThreads * Tile::kLanes),
        first_row_(ThreadIndex() / kRowThreads) {}

  // Starts to load what the thread's row number `i` needs.
  TF_DEFORMABLE_DEVICE void Load(const ChunkTap& of, int i) {
    const int32_t at = of.chunk * kChunk<T> + channel_;
    sampler_ = TileSampler(g_, inputs_, held_.first_channel + at, g_.segment - at);
    sampler_.Load(Corners(of, i), &loaded_);
  }

  // Samples it, into the tile of the turn.
  TF_DEFORMABLE_DEVICE void Finish(const ChunkTap& of, int i, int32_t turn) const {
    const int row = turn % 2 * Tile::kRows + first_row_ + i * kRowsAtOnce;
    *reinterpret_cast<Vector16*>(shared_.samples + row * Shared::kSamplesRow + channel_) =
        sampler_.Finish(Corners(of, i), loaded_);
  }

 private:
  using TileSampler = Sampler<T, Tile::kVectors, Tile::kRound>;

  TF_DEFORMABLE_DEVICE const WeightedCorners<ComputeType<T>>& Corners(const ChunkTap& of,
                                                                      int i) const {
    return shared_.corners[of.tap * Tile::kRows + first_row_ + i * kRowsAtOnce];
  }

  const Convolution& g_;
  const T* inputs_;
  const HeldTaps& held_;
  const Shared& shared_;
  int channel_, first_row_;  // the first of its channels in the chunk, the first of its rows
  TileSampler sampler_;
  typename TileSampler::Loaded loaded_;
};

// Starts to copy the filters of a turn.
template <typename Tile>
TF_DEFORMABLE_DEVICE void CopyFilters(const Convolution& g, const typename Tile::T* filters,
                                      const ForwardBlock& block, const HeldTaps& held,
                                      const ChunkTap& of, int32_t turn,
                                      const ForwardShared<Tile>& shared) {
  using T = typename Tile::T;
  using Shared = ForwardShared<Tile>;
  const int64_t tap = held.first + of.tap;
  const int64_t row = tap * g.group_channels + held.segment * g.segment + of.chunk * kChunk<T>;
  CopyTile<T, kChunk<T>, Tile::kColumns, Tile::kVectors>(
      filters + row * g.filters + block.filter, g.filters, g.segment - of.chunk * kChunk<T>,
      block.filters, shared.filters + turn % Tile::kStages * kChunk<T> * Shared::kFiltersRow,
      Shared::kFiltersRow);
}

// Adds to the product what the held taps of a segment give. Other threads may still be writing the
// corners when it is called.
template <typename Tile>
TF_DEFORMABLE_DEVICE void MultiplyHeldTaps(const Convolution& g,
                                           const ForwardTensors<typename Tile::T>& tensors,
                                           const ForwardBlock& block, const HeldTaps& held,
                                           const ForwardShared<Tile>& shared,
                                           typename Tile::Product* product) {
  using T = typename Tile::T;
  using Shared = ForwardShared<Tile>;
  using Samples = ForwardSamples<Tile>;
  const int32_t turns = CeilDiv(g.segment, kChunk<T>) * held.count;
  ChunkTap copied;
  const auto copy_filters = [&](int32_t turn) {
    if (turn < turns) CopyFilters<Tile>(g, tensors.filters, block, held, copied, turn, shared);
    CommitCopies();
    copied.Advance(held.count);
  };
#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_filters(stage);
  SyncThreads();  // the corners are there
  Samples samples(g, tensors.inputs, held, shared);
  ChunkTap next;
#pragma unroll
  for (int i = 0; i < Samples::kThreadRows; ++i) {
    samples.Load(next, i);
    samples.Finish(next, i, 0);
  }
  for (int32_t turn = 0; turn < turns; ++turn) {
    next.Advance(held.count);
    const bool more = turn + 1 < turns;
    WaitForCopies<Tile::kStages - 2>();
    SyncThreads();  // this turn's tiles are there, those of the last one have been read
    copy_filters(turn + Tile::kStages - 1);
    MultiplyTiles<Tile, Contiguous::kDepth, Contiguous::kOutput, true, false>(
        shared.samples + turn % 2 * Tile::kRows * Shared::kSamplesRow, Shared::kSamplesRow,
        shared.filters + turn % Tile::kStages * kChunk<T> * Shared::kFiltersRow,
        Shared::kFiltersRow,
        [&](int k) {
          if (k < Samples::kThreadRows && more) samples.Load(next, k);
        },
        [&](int k) {
          if (k < Samples::kThreadRows && more) samples.Finish(next, k, turn + 1);
        },
        product);
  }
}

template <typename Tile>
TF_DEFORMABLE_DEVICE void StoreOutput(const Convolution& g,
                                      const ForwardTensors<typename Tile::T>& tensors,
                                      const ForwardBlock& block, const TilePixel* pixels,
                                      const typename Tile::Product& product) {
  using Product = typename Tile::Product;
  const int warp = ThreadIndex() / 32, lane = ThreadIndex() % 32;
  product.ForEachRun(lane, [&](int row, int run, const typename Product::Sum* sums) {
    const int64_t pixel = pixels[Tile::FirstRow(warp) + row].pixel;
    const int at = Tile::FirstColumn(warp) + run;
    if (pixel < 0) return;
    typename Product::Sum values[Product::kRun];
#pragma unroll
    for (int k = 0; k < Product::kRun; ++k) values[k] = sums[k];
    AddBias(tensors.bias, block.filter + at, block.filters - at, values);
    StoreRun<typename Tile::T, Product::kRun, Tile::kVectors>(
        values, at, block.filters, tensors.output + pixel * g.filters + block.filter + at);
  });
}

template <typename Tile>
TF_DEFORMABLE_KERNEL(kThreads, Tile::kRows* Tile::kColumns > 128 * 128 ? 1 : 2)
void ForwardKernel(Convolution g, ForwardTensors<typename Tile::T> tensors, int32_t column_tiles) {
  using T = typename Tile::T;
  const ForwardShared<Tile> shared(SharedMemory(), g.taps);
  const ForwardBlock block = MakeForwardBlock(g, column_tiles, Tile::kColumns);
  StorePixels<Tile::kRows>(g, block.tile, shared.pixels);
  typename Tile::Product product;
  product.Clear();
  ForEachHeldTaps(g, block.group, [&](const HeldTaps& held) {
    SyncThreads();  // the last segment's tiles have been read
    StoreCorners<T, Tile::kRows, Tile::kVectors>(
        g, tensors, held.first_channel / g.offset_group_channels, held.first, held.count,
        shared.pixels, shared.corners);
    MultiplyHeldTaps<Tile>(g, tensors, block, held, shared, &product);
  });
  StoreOutput<Tile>(g, tensors, block, shared.pixels, product);
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
  const int64_t blocks = ChooseTiles(rows, &copy) * CeilDiv(c.group_filters, columns) * c.groups();
  return CeilDiv(blocks, multiprocessors) * rows * (sampling_cost + columns);
}

template <typename Tile>
Status LaunchForward(Convolution c, const ForwardTensors<typename Tile::T>& tensors, void* stream) {
  const int32_t column_tiles = CeilDiv(c.group_filters, Tile::kColumns);
  const int64_t tiles = ChooseTiles(Tile::kRows, &c);
  const ForwardShared<Tile> shared(nullptr, c.taps);
  return Launch(kOp, ForwardKernel<Tile>, tiles * c.groups() * column_tiles, kThreads, shared.bytes,
                stream, c, tensors, column_tiles);
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
  status_ = MakeConvolution(geometry_, &convolution_);
  if (status_.ok()) status_ = GetDeviceLimits(kOp, options_, &limits_);
  if (!status_.ok() || geometry_.is_depthwise()) return;
  warpgroup_columns_ = WarpgroupForwardColumns<T>(convolution_, limits_, options_);
  if (warpgroup_columns_ > 0) {
    workspace_bytes_ = PackForForward(convolution_, warpgroup_columns_).template bytes<T>();
  }
}

template <typename T>
Status ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, void* workspace, void* stream) const {
  if (!status_.ok() || geometry_.output_pixels() == 0) return status_;
  Convolution c = convolution_;
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
