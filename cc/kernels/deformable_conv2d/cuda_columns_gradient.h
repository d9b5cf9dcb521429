// CUDA kernel of the gradient of the columns, ds of cuda_tiles.h: a plain product of the upstream
// gradient and the filters, into the workspace.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_H_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/reduce.h"
#include "kernels/deformable_conv2d/cuda_columns_block.h"
#include "kernels/deformable_conv2d/cuda_columns_gradient_warpgroups.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_packed_filters.h"

namespace tf_deformable::deformable_conv2d::cuda {

// kResident: all of the rows' grad_output is in shared memory, else a chunk at a time.
template <typename Tile, bool kResident>
struct ColumnsGradientShared {
  using T = typename Tile::T;
  static constexpr int kRow = PaddedRow<T>(kChunk<T>, false);
  static constexpr int kStages = kResident ? 2 : Tile::kStages;
  T* grad_output;  // [chunks of the filters or kStages, kRows, kRow]
  T* filters;      // [kStages, kColumns, kRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE ColumnsGradientShared(char* memory, int filter_chunks) {
    SharedLayout layout(memory);
    grad_output = layout.Take<T>((kResident ? filter_chunks : kStages) * Tile::kRows * kRow);
    filters = layout.Take<T>(kStages * Tile::kColumns * kRow);
    bytes = layout.size();
  }
};

// Rounds the block's grad_output to TF32, all threads together.
template <typename Tile, bool kResident>
TF_DEFORMABLE_DEVICE void RoundRows(const ColumnsGradientShared<Tile, kResident>& shared,
                                    int32_t chunks) {
  using T = typename Tile::T;
  constexpr int kRowVectors = kChunk<T> / Tile::kLanes;
  for (int i = ThreadIndex(); i < chunks * Tile::kRows * kRowVectors; i += kThreads) {
    const int row = i / kRowVectors, column = i % kRowVectors * Tile::kLanes;
    RoundInPlace(shared.grad_output + row * ColumnsGradientShared<Tile, kResident>::kRow + column);
  }
}

// Stores a tile of the block's columns.
template <typename Tile>
TF_DEFORMABLE_DEVICE void StoreColumnTile(const Convolution& g,
                                          const ColumnsGradientJob<typename Tile::T>& job,
                                          const ColumnsBlock<typename Tile::T>& block, int32_t tile,
                                          const typename Tile::Product& product) {
  using T = typename Tile::T;
  const int warp = ThreadIndex() / 32, lane = ThreadIndex() % 32;
  const auto store = [&](int row, int run, const auto& sums) {
    constexpr int kRun = Tile::kInterleaves ? kInterleavedRun : Tile::Product::kRun;
    const int row_of_block = Tile::FirstRow(warp) + row;
    if (row_of_block >= block.rows) return;
    typename Tile::Product::Sum values[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) values[k] = sums[k];
    StoreColumns<T, Tile::kVectors>(
        g, values, block.group, block.first_pixel + row_of_block,
        (block.first_tile + tile) * Tile::kColumns + Tile::FirstColumn(warp) + run, job.columns);
  };
  if constexpr (Tile::kInterleaves) {
    product.ForEachInterleavedRun(lane, store);
  } else {
    product.ForEachRun(lane, store);
  }
}

template <typename Tile, bool kResident>
TF_DEFORMABLE_KERNEL(kThreads, Tile::kRows* Tile::kColumns > 128 * 128 ? 1 : 2)
void ColumnsGradientKernel(Convolution g, ColumnsGradientJob<typename Tile::T> job) {
  using T = typename Tile::T;
  using Shared = ColumnsGradientShared<Tile, kResident>;
  constexpr int kStages = Shared::kStages, kRow = Shared::kRow;
  const int32_t chunks = CeilDiv(g.group_filters, kChunk<T>);
  const Shared shared(SharedMemory(), chunks);
  const ColumnsBlock<T> block = MakeColumnsBlock(g, job, Tile::kRows);
  const auto copy_rows = [&](int32_t chunk, int buffer) {
    CopyTile<T, Tile::kRows, kChunk<T>, Tile::kVectors>(
        block.grad_output + chunk * kChunk<T>, g.filters, block.rows,
        g.group_filters - chunk * kChunk<T>, shared.grad_output + buffer * Tile::kRows * kRow,
        kRow);
  };
  const int32_t turns = block.tiles * chunks;
  const auto copy = [&](int32_t turn) {
    if (turn < turns) {
      const int32_t tile = turn / chunks, chunk = turn - tile * chunks;
      const int32_t column = (block.first_tile + tile) * Tile::kColumns;
      CopyTile<T, Tile::kColumns, kChunk<T>, Tile::kVectors, Tile::kInterleaves>(
          job.filters + static_cast<int64_t>(column) * g.filters + block.group * g.group_filters +
              chunk * kChunk<T>,
          g.filters, g.taps * g.group_channels - column, g.group_filters - chunk * kChunk<T>,
          shared.filters + turn % kStages * Tile::kColumns * kRow, kRow);
      if (!kResident) copy_rows(chunk, turn % kStages);
    }
    CommitCopies();
  };

  if constexpr (kResident) {
    for (int32_t chunk = 0; chunk < chunks; ++chunk) copy_rows(chunk, chunk);
  }
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) copy(stage);
  if constexpr (kResident && Tile::kRound) {
    WaitForCopies<kStages - 2>();
    SyncThreads();
    RoundRows<Tile, kResident>(shared, chunks);
  }
  int32_t turn = 0;
  for (int32_t tile = 0; tile < block.tiles; ++tile) {
    typename Tile::Product product;
    product.Clear();
    for (int32_t chunk = 0; chunk < chunks; ++chunk, ++turn) {
      WaitForCopies<kStages - 2>();
      SyncThreads();  // this turn's tiles are there, those of the last one have been read
      copy(turn + kStages - 1);
      MultiplyTiles<Tile, Contiguous::kDepth, Contiguous::kDepth, kResident, true>(
          shared.grad_output + (kResident ? chunk : turn % kStages) * Tile::kRows * kRow, kRow,
          shared.filters + turn % kStages * Tile::kColumns * kRow, kRow, [](int) {}, [](int) {},
          &product);
    }
    StoreColumnTile<Tile>(g, job, block, tile, product);
  }
}

// --- Launching -----------------------------------------------------------------------------------

template <typename T>
Status LaunchColumnTiles(void (*kernel)(Convolution, ColumnsGradientJob<T>), int rows, int columns,
                         int64_t bytes, const Convolution& c, ColumnsGradientJob<T> job,
                         const DeviceLimits& limits, void* stream) {
  const int64_t blocks = CeilDiv(c.pixels(), rows) * c.groups();
  job.column_tiles = CeilDiv(static_cast<int64_t>(c.taps) * c.group_channels, columns);
  const bool two = rows * columns <= 128 * 128 && bytes <= limits.shared_bytes_for_two();
  job.splits = ChooseSplits(blocks, job.column_tiles, job.column_tiles,
                            (two ? 2 : 1) * limits.multiprocessors);
  job.tiles_per_block = CeilDiv(job.column_tiles, job.splits);
  job.splits = CeilDiv(job.column_tiles, job.tiles_per_block);
  return Launch(kOp, kernel, blocks * job.splits, kThreads, bytes, stream, c, job);
}

template <typename Tile, bool kResident>
Status LaunchColumnsGradient(const Convolution& c, const ColumnsGradientJob<typename Tile::T>& job,
                             const DeviceLimits& limits, void* stream) {
  using Shared = ColumnsGradientShared<Tile, kResident>;
  const int64_t bytes = Shared(nullptr, CeilDiv(c.group_filters, kChunk<typename Tile::T>)).bytes;
  return LaunchColumnTiles(ColumnsGradientKernel<Tile, kResident>, Tile::kRows, Tile::kColumns,
                           bytes, c, job, limits, stream);
}

inline constexpr int kPackedColumns = 256;  // of a tile that warpgroups multiply

template <typename T>
Status LaunchWarpgroupColumnsGradient(const Convolution& c, const ColumnsGradientJob<T>& job,
                                      const DeviceLimits& limits, void* stream) {
  using Shared = WarpgroupColumnsGradientShared<T, kPackedColumns>;
  const int64_t resident_bytes = Shared(nullptr, CeilDiv(c.group_filters, kChunk<T>)).bytes;
  const bool resident = resident_bytes <= limits.shared_bytes_per_block;
  return LaunchColumnTiles(resident ? WarpgroupColumnsGradientKernel<T, kPackedColumns, true>
                                    : WarpgroupColumnsGradientKernel<T, kPackedColumns, false>,
                           kWarpgroupRows, kPackedColumns,
                           resident ? resident_bytes : Shared(nullptr, kColumnsStages).bytes, c,
                           job, limits, stream);
}

// How the filters are prepared for ColumnsGradient.
enum class PreparedFilters { kAsTheyAre, kRounded, kPacked };

template <typename T>
PreparedFilters PrepareForColumnsGradient(const Convolution& c, bool uses_fma, bool vectorised,
                                          const DeviceLimits& limits) {
  if (std::is_same_v<T, double> || uses_fma) return PreparedFilters::kAsTheyAre;
  if (vectorised && limits.has_warpgroup_products &&
      PacksWell<T>(c, PackForColumnsGradient(c, kPackedColumns))) {
    return PreparedFilters::kPacked;
  }
  return std::is_same_v<T, float> ? PreparedFilters::kRounded : PreparedFilters::kAsTheyAre;
}

// The memory that it takes.
template <typename T>
int64_t PreparedBytes(const Convolution& c, PreparedFilters how) {
  switch (how) {
    case PreparedFilters::kPacked:
      return PackForColumnsGradient(c, kPackedColumns).template bytes<T>();
    case PreparedFilters::kRounded:
      return static_cast<int64_t>(c.taps) * c.group_channels * c.filters * sizeof(T);
    case PreparedFilters::kAsTheyAre:
      break;
  }
  return 0;
}

// Prepares them, in `memory` if it takes any, and sets `prepared` to where they are.
template <typename T>
Status PrepareFilters(const Convolution& c, PreparedFilters how, const T* filters, T* memory,
                      const T** prepared, void* stream) {
  *prepared = how == PreparedFilters::kAsTheyAre ? filters : memory;
  if constexpr (!std::is_same_v<T, double>) {
    if (how == PreparedFilters::kPacked) {
      return PackFilters(PackForColumnsGradient(c, kPackedColumns), filters, memory, stream);
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    if (how == PreparedFilters::kRounded) {
      const int64_t size = PreparedBytes<T>(c, how) / sizeof(T);
      return LaunchForElements(kOp, RoundKernel<T>, size, stream, filters, size, memory);
    }
  }
  return Status();
}

// The gradient of the columns of the pixels of `c`.
template <typename T>
Status ColumnsGradient(const Convolution& c, const ColumnsGradientJob<T>& job, bool uses_fma,
                       bool vectorised, const DeviceLimits& limits, void* stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (!uses_fma && vectorised) {
      if (PrepareForColumnsGradient<T>(c, uses_fma, vectorised, limits) ==
          PreparedFilters::kPacked) {
        return LaunchWarpgroupColumnsGradient(c, job, limits, stream);
      }
      using Square = Tile<T, false, 128, 128, 64, 32, true>;
      using Wide = Tile<T, false, 128, 256, 64, 64, true>;
      const int chunks = CeilDiv(c.group_filters, kChunk<T>);
      if (ColumnsGradientShared<Square, true>(nullptr, chunks).bytes <=
          limits.shared_bytes_for_two()) {
        return LaunchColumnsGradient<Square, true>(c, job, limits, stream);
      }
      if (ColumnsGradientShared<Wide, true>(nullptr, chunks).bytes <=
          limits.shared_bytes_per_block) {
        return LaunchColumnsGradient<Wide, true>(c, job, limits, stream);
      }
      return LaunchColumnsGradient<Square, false>(c, job, limits, stream);
    }
  }
  return WithTile<T, 64, 64, 32, 16>(uses_fma, vectorised, [&](auto tile) {
    using Tile = decltype(tile);
    if constexpr (Tile::kFma || !Tile::kVectors) {  // the others have been launched
      return LaunchColumnsGradient<Tile, false>(c, job, limits, stream);
    }
    return Status();
  });
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_H_
