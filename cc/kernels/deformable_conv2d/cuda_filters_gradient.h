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
  static constexpr int kPixels = kChunk<T>;  // of a turn
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
  const int32_t segment_slots = CeilDiv(g.segment, kSlotChannels);  // of a tap
  const int32_t tap_slots = g.group_segments() * segment_slots;
  const int32_t tap = slot / tap_slots, within = slot - tap * tap_slots;
  const int32_t segment = within / segment_slots;
  const int32_t channel = (within - segment * segment_slots) * kSlotChannels;  // of the segment
  return {tap, segment * g.segment + channel, Min(kSlotChannels, g.segment - channel)};
}

// A block has a pair of slots, some filters of their group, and a split of the pixels, of which
// each turn takes kPixels.
struct FiltersGradientBlock {
  int32_t group, first_slot;
  int32_t filter, filters;  // the first one, among those of all groups; how many there are
  int64_t split, first_pixel, last_pixel;
};

template <typename A>
TF_DEFORMABLE_DEVICE FiltersGradientBlock MakeFiltersGradientBlock(const Convolution& g,
                                                                   const FiltersGradientJob<A>& job,
                                                                   int columns) {
  int64_t number = BlockIndex();
  const int32_t column = static_cast<int32_t>(number % job.column_tiles) * columns;
  number /= job.column_tiles;
  FiltersGradientBlock block;
  block.first_slot = 2 * static_cast<int32_t>(number % job.slot_pairs);
  number /= job.slot_pairs;
  const int32_t groups = g.groups();
  block.group = static_cast<int32_t>(number % groups);
  block.split = number / groups;
  block.filter = block.group * g.group_filters + column;
  block.filters = Min(columns, g.group_filters - column);
  block.first_pixel = g.first_pixel + block.split * job.pixels_per_split;
  block.last_pixel = Min(block.first_pixel + job.pixels_per_split, g.last_pixel);
  return block;
}

// What a thread works out of where the pixels of a turn sample: one pixel in one of the two slots.
// Offsets are read when a turn begins and used when it ends, so that nobody waits for them.
template <typename Tile>
class SlotCorners {
 public:
  using T = typename Tile::T;
  using Shared = FiltersGradientShared<Tile>;
  static_assert(2 * Shared::kPixels <= kThreads, "a thread to each pixel of both slots");

  TF_DEFORMABLE_DEVICE SlotCorners(const Convolution& g, const BackwardTensors<T>& tensors,
                                   const FiltersGradientBlock& block, int32_t slots, int32_t turns,
                                   const Shared& shared)
      : g_(g),
        tensors_(tensors),
        block_(block),
        turns_(turns),
        shared_(shared),
        place_(ThreadIndex() / Shared::kPixels),
        slot_(MakeFilterSlot(g, slots, block.first_slot + place_)),
        offset_group_((block.group * g.group_channels + slot_.channel) / g.offset_group_channels) {}

  TF_DEFORMABLE_DEVICE void ReadOffset(int32_t turn) {
    if (place_ > 1 || turn >= turns_) return;
    offset_ =
        LoadRawOffset(g_, tensors_.offsets, tensors_.mask, Pixel(turn), offset_group_, slot_.tap);
  }

  TF_DEFORMABLE_DEVICE void Store(int32_t turn) const {
    if (place_ > 1 || turn >= turns_) return;
    shared_.corners[(turn % 2 * 2 + place_) * Shared::kPixels + ThreadIndex() % Shared::kPixels] =
        MakeWeightedCorners<T, Tile::kVectors>(
            g_, Pixel(turn), slot_.tap, FromRawOffset(tensors_.offsets, tensors_.mask, offset_));
  }

 private:
  TF_DEFORMABLE_DEVICE TilePixel Pixel(int32_t turn) const {
    const int64_t pixel = block_.first_pixel + static_cast<int64_t>(turn) * Shared::kPixels +
                          ThreadIndex() % Shared::kPixels;
    return MakeTilePixel(g_, pixel < block_.last_pixel ? pixel : -1);
  }

  const Convolution& g_;
  const BackwardTensors<T>& tensors_;
  const FiltersGradientBlock& block_;
  int32_t turns_;
  const Shared& shared_;
  int place_;  // of the slot among the block's: 0 or 1; more: the thread has none
  FilterSlot slot_;
  int32_t offset_group_;
  RawOffset<T> offset_ = {0, 0, 0};
};

// What a thread samples of a turn: 16 bytes of the channels of one slot, of some of the pixels.
template <typename Tile>
class SlotSamples {
 public:
  using T = typename Tile::T;
  using Shared = FiltersGradientShared<Tile>;
  static constexpr int kRowThreads = kSlotChannels / Tile::kLanes;  // of one slot
  static constexpr int kRowsAtOnce = kThreads / (2 * kRowThreads);
  static constexpr int kThreadRows = Shared::kPixels / kRowsAtOnce;
  static_assert(kThreadRows <= Tile::kDepthSteps,
                "a row of each thread is sampled during a depth step");

  TF_DEFORMABLE_DEVICE SlotSamples(const Convolution& g, const T* inputs,
                                   const FiltersGradientBlock& block, int32_t slots,
                                   const Shared& shared)
      : shared_(shared),
        place_(ThreadIndex() / kRowThreads % 2),
        channel_(ThreadIndex() % kRowThreads * Tile::kLanes),
        first_row_(ThreadIndex() / (2 * kRowThreads)) {
    const FilterSlot slot = MakeFilterSlot(g, slots, block.first_slot + place_);
    sampler_ = TileSampler(g, inputs, block.group * g.group_channels + slot.channel + channel_,
                           slot.width - channel_);
  }

  // Starts to load what the thread's row number `i` needs.
  TF_DEFORMABLE_DEVICE void Load(int32_t turn, int i) { sampler_.Load(Corners(turn, i), &loaded_); }

  // Samples it, into the tile of the turn.
  TF_DEFORMABLE_DEVICE void Finish(int32_t turn, int i) const {
    const int row = turn % 2 * Shared::kPixels + first_row_ + i * kRowsAtOnce;
    *reinterpret_cast<Vector16*>(shared_.samples + row * Shared::kSamplesRow +
                                 place_ * kSlotChannels + channel_) =
        sampler_.Finish(Corners(turn, i), loaded_);
  }

 private:
  using TileSampler = Sampler<T, Tile::kVectors, Tile::kRound>;

  TF_DEFORMABLE_DEVICE const WeightedCorners<ComputeType<T>>& Corners(int32_t turn, int i) const {
    return shared_
        .corners[(turn % 2 * 2 + place_) * Shared::kPixels + first_row_ + i * kRowsAtOnce];
  }

  const Shared& shared_;
  int place_;                // of the slot among the block's: 0 or 1
  int channel_, first_row_;  // the first of its channels in the slot, the first of its pixels
  TileSampler sampler_;
  typename TileSampler::Loaded loaded_;
};

// Starts to copy the upstream gradient of a turn's pixels.
template <typename Tile>
TF_DEFORMABLE_DEVICE void CopyGradOutput(const Convolution& g, const typename Tile::T* grad_output,
                                         const FiltersGradientBlock& block, int32_t turn,
                                         const FiltersGradientShared<Tile>& shared) {
  using T = typename Tile::T;
  using Shared = FiltersGradientShared<Tile>;
  const int64_t pixel = block.first_pixel + static_cast<int64_t>(turn) * Shared::kPixels;
  const int64_t rows = Min(block.last_pixel - pixel, static_cast<int64_t>(Shared::kPixels));
  CopyTile<T, Shared::kPixels, Tile::kColumns, Tile::kVectors>(
      grad_output + pixel * g.filters + block.filter, g.filters, static_cast<int>(rows),
      block.filters,
      shared.grad_output + turn % Tile::kStages * Shared::kPixels * Shared::kGradOutputRow,
      Shared::kGradOutputRow);
}

template <typename Tile>
TF_DEFORMABLE_DEVICE void StoreFiltersGradient(
    const Convolution& g, const FiltersGradientJob<ComputeType<typename Tile::T>>& job,
    const FiltersGradientBlock& block, typename Tile::T* grad_filters,
    const typename Tile::Product& product) {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  constexpr int kRun = Tile::Product::kRun;
  const int warp = ThreadIndex() / 32, lane = ThreadIndex() % 32;
  static_assert(kSlotChannels % Tile::kWarpRows == 0, "a warp's rows are of one slot");
  const FilterSlot slot =
      MakeFilterSlot(g, job.slots, block.first_slot + Tile::FirstRow(warp) / kSlotChannels);
  product.ForEachRun(lane, [&](int row, int run, const A* sums) {
    const int32_t in_slot = Tile::FirstRow(warp) % kSlotChannels + row;
    if (in_slot >= slot.width) return;
    const int64_t filter_row =
        static_cast<int64_t>(slot.tap) * g.group_channels + slot.channel + in_slot;
    const int at = Tile::FirstColumn(warp) + run;
    A values[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) values[k] = sums[k];
    const int64_t target = filter_row * g.filters + block.filter + at;
    if (job.partials == nullptr) {
      StoreRun<T, kRun, Tile::kVectors>(values, at, block.filters, grad_filters + target);
    } else {
      const int64_t size = static_cast<int64_t>(g.taps) * g.group_channels * g.filters;
      StoreRun<A, kRun, Tile::kVectors>(values, at, block.filters,
                                        job.partials + block.split * size + target);
    }
  });
}

template <typename Tile>
TF_DEFORMABLE_KERNEL(kThreads, Tile::kRows* Tile::kColumns > 128 * 128 ? 1 : 2)
void FiltersGradientKernel(Convolution g, BackwardTensors<typename Tile::T> tensors,
                           FiltersGradientJob<ComputeType<typename Tile::T>> job) {
  using Shared = FiltersGradientShared<Tile>;
  using Samples = SlotSamples<Tile>;
  static_assert(Tile::kRows == 2 * kSlotChannels, "two slots");
  const Shared shared(SharedMemory());
  const FiltersGradientBlock block = MakeFiltersGradientBlock(g, job, Tile::kColumns);
  const int32_t turns = static_cast<int32_t>(
      CeilDiv(block.last_pixel - block.first_pixel, static_cast<int64_t>(Shared::kPixels)));
  SlotCorners<Tile> corners(g, tensors, block, job.slots, turns, shared);
  Samples samples(g, tensors.inputs, block, job.slots, shared);
  const auto copy_grad_output = [&](int32_t turn) {
    if (turn < turns) CopyGradOutput<Tile>(g, tensors.grad_output, block, turn, shared);
    CommitCopies();
  };
  typename Tile::Product product;
  product.Clear();
#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_grad_output(stage);
  for (int32_t turn = 0; turn < 2; ++turn) {
    corners.ReadOffset(turn);
    corners.Store(turn);
  }
  SyncThreads();  // the corners are there
  if (turns > 0) {
#pragma unroll
    for (int i = 0; i < Samples::kThreadRows; ++i) {
      samples.Load(0, i);
      samples.Finish(0, i);
    }
  }
  for (int32_t turn = 0; turn < turns; ++turn) {
    const bool more = turn + 1 < turns;
    WaitForCopies<Tile::kStages - 2>();
    SyncThreads();  // this turn's tiles are there, those of the last one have been read
    copy_grad_output(turn + Tile::kStages - 1);
    corners.ReadOffset(turn + 2);
    MultiplyTiles<Tile, Contiguous::kOutput, Contiguous::kOutput, true, false>(
        shared.samples + turn % 2 * Shared::kPixels * Shared::kSamplesRow, Shared::kSamplesRow,
        shared.grad_output + turn % Tile::kStages * Shared::kPixels * Shared::kGradOutputRow,
        Shared::kGradOutputRow,
        [&](int k) {
          if (k < Samples::kThreadRows && more) samples.Load(turn + 1, k);
        },
        [&](int k) {
          if (k < Samples::kThreadRows && more) samples.Finish(turn + 1, k);
        },
        &product);
    corners.Store(turn + 2);
  }
  StoreFiltersGradient<Tile>(g, job, block, tensors.grad_filters, product);
}

// --- Launching -----------------------------------------------------------------------------------

// The slots of a group: its taps and, for each, kSlotChannels of a segment at a time.
inline int64_t CountFilterSlots(const Convolution& c) {
  return static_cast<int64_t>(c.taps) * c.group_segments() * CeilDiv(c.segment, kSlotChannels);
}

// How many blocks there are to a split of the pixels, and how many places for blocks the device
// has, for the tiles that are taken if tensors can be read 16 bytes at a time.
struct FiltersGradientBlocks {
  int64_t blocks, places;
};
template <typename T>
FiltersGradientBlocks CountFiltersGradientBlocks(const Convolution& c, bool depthwise,
                                                 bool uses_fma, int64_t multiprocessors) {
  if (depthwise) return {CountDepthwiseFiltersBlocks<T>(c), 2 * multiprocessors};
  const int columns = uses_fma || c.group_filters <= 64 ? 64 : c.group_filters <= 128 ? 128 : 256;
  return {c.groups() * CeilDiv(CountFilterSlots(c), 2) * CeilDiv(c.group_filters, columns),
          (columns > 128 ? 1 : 2) * multiprocessors};
}

template <typename Tile>
Status LaunchFiltersGradient(const Convolution& c, const BackwardTensors<typename Tile::T>& tensors,
                             int32_t splits, ComputeType<typename Tile::T>* partials,
                             void* stream) {
  using Shared = FiltersGradientShared<Tile>;
  FiltersGradientJob<ComputeType<typename Tile::T>> job;
  job.slots = CountFilterSlots(c);
  job.slot_pairs = CeilDiv(job.slots, 2);
  job.column_tiles = CeilDiv(c.group_filters, Tile::kColumns);
  job.splits = splits;
  job.pixels_per_split = RoundUp(CeilDiv(c.pixels(), splits), Shared::kPixels);
  job.partials = partials;
  const int64_t blocks =
      static_cast<int64_t>(c.groups()) * job.slot_pairs * job.column_tiles * splits;
  return Launch(kOp, FiltersGradientKernel<Tile>, blocks, kThreads, Shared(nullptr).bytes, stream,
                c, tensors, job);
}

template <typename T>
Status BackwardPlan<T>::RunFilters(const BackwardTensors<T>& tensors, void* workspace,
                                   void* stream) const {
  using A = ComputeType<T>;
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  const int64_t size = g.taps() * g.group_channels() * g.filters;
  if (g.output_pixels() == 0) {
    return FillZeros(kOp, tensors.grad_filters, size * sizeof(T), stream);
  }
  const Convolution& c = convolution_;
  A* const partials = splits_ > 1 || depthwise_ ? static_cast<A*>(workspace) : nullptr;
  const bool vectorised = IsVectorised(c, depthwise_, 16 / sizeof(T),
                                       {tensors.inputs, tensors.grad_output, tensors.grad_filters});
  Status status;
  if (depthwise_) {
    status = (vectorised ? LaunchDepthwiseFiltersGradient<T, true>
                         : LaunchDepthwiseFiltersGradient<T, false>)(c, tensors, splits_, partials,
                                                                     stream);
  } else {
    const auto launch = [&](auto tile) {
      return LaunchFiltersGradient<decltype(tile)>(c, tensors, splits_, partials, stream);
    };
    status = WithTile<T, 2 * kSlotChannels, 64, 32, 32>(
        UsesFma<T>(options_), vectorised, [&](auto small) {
          using Small = decltype(small);
          if constexpr (!Small::kFma && Small::kVectors) {
            using Medium = Tile<typename Small::T, false, 2 * kSlotChannels, 128, 64, 32, true>;
            using Large = Tile<typename Small::T, false, 2 * kSlotChannels, 256, 64, 64, true>;
            if (c.group_filters > 128) return launch(Large());
            if (c.group_filters > 64) return launch(Medium());
          }
          return launch(small);
        });
  }
  if (!status.ok() || partials == nullptr) return status;
  return LaunchForElements(kOp, SumKernel<T>, size, stream, static_cast<const A*>(partials), size,
                           splits_, tensors.grad_filters);
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FILTERS_GRADIENT_H_
