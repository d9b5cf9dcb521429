// CUDA kernel of the gradient of the filters, and its launches.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FILTERS_GRADIENT_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FILTERS_GRADIENT_H_

#include <cstdint>

#include "kernels/cuda/reduce.h"
#include "kernels/deformable_conv2d/cuda_depthwise.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

// How a launch cuts the work: a block has two slots, some columns (filters) and a split of the
// pixels.
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

// A slot: one tap, and `width` of a group's channels, at most kSlotChannels; 0 beyond the last
// slot.
struct FilterSlot {
  int32_t tap, channel, width;  // the channel is counted in the group
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
  constexpr int kThreadRows = Shared::kPixels / kRowsAtOnce;
  static_assert(Tile::kRows == 2 * kSlotChannels, "two slots");
  static_assert(kThreadRows <= Tile::kSteps,
                "a row of each thread is sampled during a turn of the product");
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
  const int32_t turns =
      static_cast<int32_t>((last_pixel - first_pixel + Shared::kPixels - 1) / Shared::kPixels);

  // The sampling points: a thread works out one of each turn, in slot `thread / kPixels`.
  const int point_slot = thread / Shared::kPixels;  // 0, 1; more: none
  const FilterSlot point = MakeFilterSlot(g, job.slots, 2 * pair + point_slot);
  const int32_t point_offset_group =
      (group * g.group_channels + point.channel) / g.offset_group_channels;
  // Read when a turn begins and used when it ends, so that nobody waits for them.
  const auto point_pixel = [&](int32_t turn) {
    const int64_t pixel =
        first_pixel + static_cast<int64_t>(turn) * Shared::kPixels + thread % Shared::kPixels;
    return MakeTilePixel(g, pixel < last_pixel ? pixel : -1);
  };
  RawOffset<T> point_offset = {0, 0, 0};
  const auto read_offsets = [&](int32_t turn) {
    if (point_slot > 1 || turn >= turns) return;
    point_offset = LoadRawOffset(g, tensors.offsets, tensors.mask, point_pixel(turn),
                                 point_offset_group, point.tap);
  };
  const auto store_corners = [&](int32_t turn) {
    if (point_slot > 1 || turn >= turns) return;
    shared.corners[(turn % 2 * 2 + point_slot) * Shared::kPixels + thread % Shared::kPixels] =
        MakeWeightedCorners<T, Tile::kVectors>(
            g, point_pixel(turn), point.tap,
            FromRawOffset(tensors.offsets, tensors.mask, point_offset));
  };
  const auto copy_grad_output = [&](int32_t turn) {
    if (turn < turns) {
      const int64_t pixel = first_pixel + static_cast<int64_t>(turn) * Shared::kPixels;
      const int64_t rows = last_pixel - pixel;
      CopyTile<T, Shared::kPixels, Tile::kColumns, Tile::kVectors>(
          tensors.grad_output + pixel * g.filters + filter, g.filters,
          rows < Shared::kPixels ? static_cast<int>(rows) : Shared::kPixels, columns,
          shared.grad_output + turn % Tile::kStages * Shared::kPixels * Shared::kGradOutputRow,
          Shared::kGradOutputRow);
    }
    CommitCopies();
  };

  // Sampling: 16 bytes of one slot at a time.
  const int sample_slot = thread / kSlotVectors % 2;
  const int vector = thread % kSlotVectors * Tile::kLanes;
  const int first_row = thread / (2 * kSlotVectors);
  const FilterSlot slot = MakeFilterSlot(g, job.slots, 2 * pair + sample_slot);
  const int32_t channel = group * g.group_channels + slot.channel + vector;
  const int32_t left = slot.width - vector;
  using TileSampler = Sampler<T, Tile::kVectors, Tile::kRound>;
  const TileSampler sampler(g, tensors.inputs, channel, left);
  typename TileSampler::Loaded loaded;
  const auto corners_of = [&](int32_t turn, int thread_row) -> const WeightedCorners<A>& {
    return shared.corners[(turn % 2 * 2 + sample_slot) * Shared::kPixels + first_row +
                          thread_row * kRowsAtOnce];
  };
  const auto load = [&](int32_t turn, int thread_row) {
    sampler.Load(corners_of(turn, thread_row), &loaded);
  };
  const auto finish = [&](int32_t turn, int thread_row) {
    const int row = turn % 2 * Shared::kPixels + first_row + thread_row * kRowsAtOnce;
    *reinterpret_cast<Vector16*>(shared.samples + row * Shared::kSamplesRow +
                                 sample_slot * kSlotChannels + vector) =
        sampler.Finish(corners_of(turn, thread_row), loaded);
  };

  typename Tile::Product product;
  product.Clear();
#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_grad_output(stage);
  for (int32_t turn = 0; turn < 2; ++turn) {
    read_offsets(turn);
    store_corners(turn);
  }
  SyncThreads();  // the corners are there
  if (turns > 0) {
#pragma unroll
    for (int thread_row = 0; thread_row < kThreadRows; ++thread_row) {
      load(0, thread_row);
      finish(0, thread_row);
    }
  }
  for (int32_t turn = 0; turn < turns; ++turn) {
    const bool more = turn + 1 < turns;
    WaitForCopies<Tile::kStages - 2>();
    SyncThreads();  // this turn's tiles are there, those of the last one have been read
    copy_grad_output(turn + Tile::kStages - 1);
    read_offsets(turn + 2);
    const T* const a =
        shared.samples + turn % 2 * Shared::kPixels * Shared::kSamplesRow + Tile::FirstRow(warp);
    const T* const b = shared.grad_output +
                       turn % Tile::kStages * Shared::kPixels * Shared::kGradOutputRow +
                       Tile::FirstColumn(warp);
#pragma unroll
    for (int k = 0; k < Tile::kSteps; ++k) {
      constexpr int kDepth = Tile::Product::kDepth;
      if (k < kThreadRows && more) load(turn + 1, k);
      product.template Step<Contiguous::kOutput, Contiguous::kOutput, true, false>(
          a + k * kDepth * Shared::kSamplesRow, Shared::kSamplesRow,
          b + k * kDepth * Shared::kGradOutputRow, Shared::kGradOutputRow, lane);
      if (k < kThreadRows && more) finish(turn + 1, k);
    }
    store_corners(turn + 2);
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

// --- Launching -----------------------------------------------------------------------------------

// How many blocks there are to a split of the pixels, and how many places for blocks the device
// has, for the tiles that RunFilters takes if it can read them 16 bytes at a time.
struct FiltersGradientBlocks {
  int64_t blocks, places;
};
template <typename T>
FiltersGradientBlocks CountFiltersGradientBlocks(const Convolution& c, bool uses_fma,
                                                 int multiprocessors) {
  const int64_t slots = c.taps * (c.group_channels / c.segment) * CeilDiv(c.segment, kSlotChannels);
  const int columns = uses_fma || c.group_filters <= 64 ? 64 : c.group_filters <= 128 ? 128 : 256;
  return {c.channels / c.group_channels * CeilDiv(slots, 2) * CeilDiv(c.group_filters, columns),
          static_cast<int64_t>(columns > 128 ? 1 : 2) * multiprocessors};
}

template <typename T>
Status BackwardPlan<T>::RunFilters(const BackwardTensors<T>& tensors, void* workspace,
                                   void* stream) const {
  using A = ComputeType<T>;
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  if (g.output_pixels() == 0) {
    const int64_t filters_bytes = g.taps() * g.group_channels() * g.filters * sizeof(T);
    return FillZeros(kOp, tensors.grad_filters, filters_bytes, stream);
  }
  Convolution c;
  if (const Status status = MakeConvolution(g, &c); !status.ok()) return status;
  A* const partials = splits_ > 1 || depthwise_ ? static_cast<A*>(workspace) : nullptr;
  const bool vectorised = IsVectorised(c, depthwise_, 16 / sizeof(T),
                                       {tensors.inputs, tensors.grad_output, tensors.grad_filters});
  Status status;
  if (depthwise_) {
    const int64_t blocks = g.taps() * (g.channels / c.segment) *
                           CeilDiv(c.segment, kChunkBytes / static_cast<int64_t>(sizeof(T)));
    const int64_t pixels =
        CeilDiv(CeilDiv(g.output_pixels(), splits_), kDepthwisePixels) * kDepthwisePixels;
    constexpr int kDepth = kChunkBytes / sizeof(T);
    status = Launch(kOp,
                    vectorised ? DepthwiseFiltersGradientKernel<T, true>
                               : DepthwiseFiltersGradientKernel<T, false>,
                    blocks * splits_, kThreads, kDepthwisePixels * kDepth * sizeof(A), stream, c,
                    tensors, pixels, partials);
  } else {
    status = WithTile<T, 2 * kSlotChannels, 64, 32, 32>(
        UsesFma<T>(options_), vectorised, [&](auto small) {
          const auto launch = [&](auto tile) {
            using Tile = decltype(tile);
            using Shared = FiltersGradientShared<Tile>;
            FiltersGradientJob<A> job;
            job.slots = c.taps * (c.group_channels / c.segment) * CeilDiv(c.segment, kSlotChannels);
            job.slot_pairs = CeilDiv(job.slots, 2);
            job.column_tiles = CeilDiv(c.group_filters, Tile::kColumns);
            job.splits = splits_;
            job.pixels_per_split =
                CeilDiv(CeilDiv(g.output_pixels(), splits_), Shared::kPixels) * Shared::kPixels;
            job.partials = partials;
            return Launch(kOp, FiltersGradientKernel<Tile>,
                          g.groups * job.slot_pairs * job.column_tiles * splits_, kThreads,
                          Shared(nullptr).bytes, stream, c, tensors, job);
          };
          using Small = decltype(small);
          if constexpr (!Small::kFma && Small::kVectors) {
            using Medium = Tile<T, false, 2 * kSlotChannels, 128, 64, 32, true>;
            using Large = Tile<T, false, 2 * kSlotChannels, 256, 64, 64, true>;
            if (c.group_filters > 128) return launch(Large());
            if (c.group_filters > 64) return launch(Medium());
          }
          return launch(small);
        });
  }
  if (!status.ok() || partials == nullptr) return status;
  const int64_t size = g.taps() * g.group_channels() * g.filters;
  return Launch(kOp, SumKernel<T>, CeilDiv(size, kReduceThreads), kReduceThreads, 0, stream,
                static_cast<const A*>(partials), size, splits_, tensors.grad_filters);
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FILTERS_GRADIENT_H_
