// CUDA kernel of the gradient of the columns, ds of cuda_tiles.h: a plain product of the upstream
// gradient and the filters, into the workspace.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_H_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/reduce.h"
#include "kernels/cuda/warpgroup.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_packed_filters.h"

namespace tf_deformable::deformable_conv2d::cuda {

// The columns of a group are its taps and, for each, its channels, as they lie in the filters. A
// block has kRows pixels of one group, and some tiles of columns, one after the other.
template <typename T>
struct ColumnsGradientJob {
  const T* grad_output;
  const T* filters;  // rounded to TF32, if that is what is multiplied
  T* columns;        // [pixels from the first of the launch on, taps, C]
  int32_t column_tiles, tiles_per_block, splits;
};

// Stores a run of a group's columns of a pixel, counted from the first one of the launch.
template <typename T, bool kVectors, int kRun>
TF_DEFORMABLE_DEVICE void StoreColumns(const Convolution& g, const ComputeType<T> (&sums)[kRun],
                                       int32_t group, int64_t pixel, int32_t column, T* columns) {
  // Vectors of channels do not go over to the next tap, but runs may.
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kLanes = !kVectors ? 1 : kRun < kVector ? kRun : kVector;
#pragma unroll
  for (int k = 0; k < kRun; k += kLanes) {
    if (column + k >= g.taps * g.group_channels) return;
    const int32_t tap = (column + k) / g.group_channels;
    const int32_t channel = group * g.group_channels + column + k - tap * g.group_channels;
    ComputeType<T> values[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = sums[k + i];
    StoreElements<T, kLanes>(values, columns + (pixel * g.taps + tap) * g.channels + channel);
  }
}

// kResident: all of the rows' grad_output is in shared memory, else a chunk at a time.
template <typename Tile, bool kResident>
struct ColumnsGradientShared {
  using T = typename Tile::T;
  static constexpr int kDepth = kChunkBytes / sizeof(T);
  static constexpr int kRow = PaddedRow<T>(kDepth, false);
  static constexpr int kStages = kResident ? 2 : Tile::kStages;
  T* grad_output;  // [chunks of filters or kStages, kRows, kRow]
  T* filters;      // [kStages, kColumns, kRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE ColumnsGradientShared(char* memory, int filter_chunks) {
    SharedLayout layout(memory);
    grad_output = layout.Take<T>((kResident ? filter_chunks : kStages) * Tile::kRows * kRow);
    filters = layout.Take<T>(kStages * Tile::kColumns * kRow);
    bytes = layout.size();
  }
};

template <typename Tile, bool kResident>
TF_DEFORMABLE_KERNEL(kThreads, Tile::kRows* Tile::kColumns > 128 * 128 ? 1 : 2)
void ColumnsGradientKernel(Convolution g, ColumnsGradientJob<typename Tile::T> job) {
  using T = typename Tile::T;
  using Shared = ColumnsGradientShared<Tile, kResident>;
  constexpr int kStages = Shared::kStages;
  constexpr bool kInterleaves = Tile::kInterleaves;
  const int32_t parts = (g.group_filters + Shared::kDepth - 1) / Shared::kDepth;
  const Shared shared(SharedMemory(), parts);
  const int thread = ThreadIndex(), warp = thread / 32, lane = thread % 32;
  const int32_t groups = g.channels / g.group_channels;
  const int32_t split = static_cast<int32_t>(BlockIndex() % job.splits);
  const int32_t group = static_cast<int32_t>(BlockIndex() / job.splits % groups);
  const int64_t first_pixel = BlockIndex() / job.splits / groups * Tile::kRows;  // of the launch
  const int64_t pixels_left = g.last_pixel - g.first_pixel - first_pixel;
  const int rows = static_cast<int>(Min(static_cast<int64_t>(Tile::kRows), pixels_left));
  const int32_t all_columns = g.taps * g.group_channels;
  const int32_t first_tile = split * job.tiles_per_block;
  const int32_t tiles = Min(job.tiles_per_block, job.column_tiles - first_tile);
  const T* const grad_output = job.grad_output + (g.first_pixel + first_pixel) * g.filters +
                               static_cast<int64_t>(group) * g.group_filters;

  const auto copy_grad_output = [&](int32_t part, int buffer) {
    CopyTile<T, Tile::kRows, Shared::kDepth, Tile::kVectors>(
        grad_output + part * Shared::kDepth, g.filters, rows,
        g.group_filters - part * Shared::kDepth,
        shared.grad_output + buffer * Tile::kRows * Shared::kRow, Shared::kRow);
  };
  const int32_t turns = tiles * parts;
  const auto copy = [&](int32_t turn) {
    if (turn < turns) {
      const int32_t tile = turn / parts, part = turn - tile * parts;
      const int32_t column = (first_tile + tile) * Tile::kColumns;
      CopyTile<T, Tile::kColumns, Shared::kDepth, Tile::kVectors, kInterleaves>(
          job.filters + static_cast<int64_t>(column) * g.filters + group * g.group_filters +
              part * Shared::kDepth,
          g.filters, all_columns - column, g.group_filters - part * Shared::kDepth,
          shared.filters + turn % kStages * Tile::kColumns * Shared::kRow, Shared::kRow);
      if (!kResident) copy_grad_output(part, turn % kStages);
    }
    CommitCopies();
  };

  if constexpr (kResident) {
    for (int32_t part = 0; part < parts; ++part) copy_grad_output(part, part);
  }
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) copy(stage);
  if constexpr (kResident && Tile::kRound) {
    WaitForCopies<kStages - 2>();
    SyncThreads();
    for (int i = thread; i < parts * Tile::kRows * (Shared::kDepth / 4); i += kThreads) {
      const int row = i / (Shared::kDepth / 4), column = i % (Shared::kDepth / 4) * 4;
      RoundInPlace(shared.grad_output + row * Shared::kRow + column);
    }
  }

  int32_t turn = 0;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    typename Tile::Product product;
    product.Clear();
    for (int32_t part = 0; part < parts; ++part, ++turn) {
      WaitForCopies<kStages - 2>();
      SyncThreads();  // this turn's tiles are there, those of the last one have been read
      copy(turn + kStages - 1);
      const T* const a =
          shared.grad_output +
          ((kResident ? part : turn % kStages) * Tile::kRows + Tile::FirstRow(warp)) * Shared::kRow;
      const T* const b = shared.filters +
                         (turn % kStages * Tile::kColumns + Tile::FirstColumn(warp)) * Shared::kRow;
#pragma unroll
      for (int k = 0; k < Tile::kSteps; ++k) {
        constexpr int kDepth = Tile::Product::kDepth;
        product.template Step<Contiguous::kDepth, Contiguous::kDepth, kResident, true>(
            a + k * kDepth, Shared::kRow, b + k * kDepth, Shared::kRow, lane);
      }
    }
    const auto store = [&](int row, int run, const auto& sums) {
      constexpr int kRun = kInterleaves ? kInterleavedRun : Tile::Product::kRun;
      const int32_t column = (first_tile + tile) * Tile::kColumns + Tile::FirstColumn(warp) + run;
      if (Tile::FirstRow(warp) + row >= rows) return;
      typename Tile::Product::Sum values[kRun];
#pragma unroll
      for (int k = 0; k < kRun; ++k) values[k] = sums[k];
      StoreColumns<T, Tile::kVectors>(g, values, group, first_pixel + Tile::FirstRow(warp) + row,
                                      column, job.columns);
    };
    if constexpr (kInterleaves) {
      product.ForEachInterleavedRun(lane, store);
    } else {
      product.ForEachRun(lane, store);
    }
  }
}

// --- On warpgroups -------------------------------------------------------------------------------

// The same on Hopper.
inline constexpr int kColumnsStages = 3;

template <typename T, int kColumns>
struct WarpgroupColumnsGradientShared {
  static constexpr int kRowsBytes = kWarpgroupRows * kChunkBytes;
  static constexpr int kColumnsBytes = kColumns * kChunkBytes;
  char* grad_output;  // [parts or kColumnsStages] tiles of kWarpgroupRows
  char* filters;      // [kColumnsStages] tiles of kColumns
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE WarpgroupColumnsGradientShared(char* memory, int parts) {
    SharedLayout layout(memory);
    grad_output = layout.Take<char>(static_cast<int64_t>(parts) * kRowsBytes);
    filters = layout.Take<char>(kColumnsStages * kColumnsBytes);
    bytes = layout.size();
  }
};

template <typename T, int kColumns, bool kResident>
TF_DEFORMABLE_KERNEL(kThreads, kColumns > 128 ? 1 : 2)
void WarpgroupColumnsGradientKernel(Convolution g, ColumnsGradientJob<T> job) {
  if constexpr (kHasWarpgroupProducts) {
    using Shared = WarpgroupColumnsGradientShared<T, kColumns>;
    constexpr int kStages = kColumnsStages, kDepth = kChunkBytes / sizeof(T);
    constexpr int kLanes = 16 / sizeof(T), kPieces = kChunkBytes / 16;
    constexpr bool kRound = std::is_same_v<T, float>;
    const int32_t parts = (g.group_filters + kDepth - 1) / kDepth;
    const Shared shared(SharedMemory(), kResident ? parts : kStages);
    const int thread = ThreadIndex(), warpgroup = thread / 128;
    const int32_t groups = g.channels / g.group_channels;
    const int32_t split = static_cast<int32_t>(BlockIndex() % job.splits);
    const int32_t group = static_cast<int32_t>(BlockIndex() / job.splits % groups);
    const int64_t first_pixel = BlockIndex() / job.splits / groups * kWarpgroupRows;
    const int64_t pixels_left = g.last_pixel - g.first_pixel - first_pixel;
    const int rows = static_cast<int>(Min(static_cast<int64_t>(kWarpgroupRows), pixels_left));
    const int32_t first_tile = split * job.tiles_per_block;
    const int32_t tiles = Min(job.tiles_per_block, job.column_tiles - first_tile);
    const T* const grad_output = job.grad_output + (g.first_pixel + first_pixel) * g.filters +
                                 static_cast<int64_t>(group) * g.group_filters;
    const char* const filters = reinterpret_cast<const char*>(job.filters) +
                                (static_cast<int64_t>(group) * job.column_tiles + first_tile) *
                                    parts * Shared::kColumnsBytes;

    const auto copy_grad_output = [&](int32_t part, int buffer) {
#pragma unroll
      for (int first = 0; first < kWarpgroupRows * kPieces; first += kThreads) {
        const int row = (first + thread) / kPieces, piece = thread % kPieces;
        const int32_t at = part * kDepth + piece * kLanes;
        const bool present = row < rows && at < g.group_filters;
        CopyAsync16(
            shared.grad_output + buffer * Shared::kRowsBytes + SwizzledPlace(row, piece),
            present ? grad_output + static_cast<int64_t>(row) * g.filters + at : job.grad_output,
            present);
      }
    };
    const int32_t turns = tiles * parts;
    const auto copy = [&](int32_t turn) {
      if (turn < turns) {
        CopyPackedTile<kColumns>(filters + static_cast<int64_t>(turn) * Shared::kColumnsBytes,
                                 shared.filters + turn % kStages * Shared::kColumnsBytes);
        if (!kResident) copy_grad_output(turn % parts, turn % kStages);
      }
      CommitCopies();
    };
    const auto round = [&](int first_tile_of_rows, int tiles_of_rows) {
      const int64_t end = static_cast<int64_t>(tiles_of_rows) * Shared::kRowsBytes;
      for (int64_t at = thread * 16; at < end; at += kThreads * 16) {
        RoundInPlace(reinterpret_cast<float*>(
            shared.grad_output + static_cast<int64_t>(first_tile_of_rows) * Shared::kRowsBytes +
            at));
      }
    };

    if constexpr (kResident) {
      for (int32_t part = 0; part < parts; ++part) copy_grad_output(part, part);
    }
    copy(0);
    if constexpr (kResident && kRound) {
      WaitForCopies<0>();
      SyncThreads();
      round(0, parts);
    }
    int32_t turn = 0;
    for (int32_t tile = 0; tile < tiles; ++tile) {
      WarpgroupProduct<T, kColumns> product;
      product.Clear();
      for (int32_t part = 0; part < parts; ++part, ++turn) {
        WaitForCopies<0>();
        if constexpr (!kResident && kRound) {
          SyncThreads();
          round(turn % kStages, 1);
        }
        ShowToWarpgroups();
        SyncThreads();  // this turn's tiles are there, those of two turns ago have been read
        copy(turn + 1);
        product.Issue(shared.grad_output +
                          (kResident ? part : turn % kStages) * Shared::kRowsBytes +
                          warpgroup * (Shared::kRowsBytes / 2),
                      shared.filters + turn % kStages * Shared::kColumnsBytes);
        WaitForWarpgroupProducts<1>();
      }
      WaitForWarpgroupProducts<0>();
      product.ForEachInterleavedRun([&](int row_of_warpgroup, int run, const auto& sums) {
        const int row = warpgroup * WarpgroupProduct<T, kColumns>::kRows + row_of_warpgroup;
        const int32_t column = (first_tile + tile) * kColumns + run;
        if (row < rows)
          StoreColumns<T, true>(g, sums, group, first_pixel + row, column, job.columns);
      });
    }
  }
}

// --- Launching -----------------------------------------------------------------------------------

template <typename T>
Status LaunchColumnTiles(void (*kernel)(Convolution, ColumnsGradientJob<T>), int rows, int columns,
                         int64_t bytes, const Convolution& c, ColumnsGradientJob<T> job,
                         const DeviceLimits& limits, void* stream) {
  const int64_t blocks =
      CeilDiv(c.last_pixel - c.first_pixel, rows) * (c.channels / c.group_channels);
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
  const int64_t bytes = Shared(nullptr, CeilDiv(c.group_filters, Shared::kDepth)).bytes;
  return LaunchColumnTiles(ColumnsGradientKernel<Tile, kResident>, Tile::kRows, Tile::kColumns,
                           bytes, c, job, limits, stream);
}

inline constexpr int kPackedColumns = 256;  // of a tile that warpgroups multiply

template <typename T>
Status LaunchWarpgroupColumnsGradient(const Convolution& c, const ColumnsGradientJob<T>& job,
                                      const DeviceLimits& limits, void* stream) {
  using Shared = WarpgroupColumnsGradientShared<T, kPackedColumns>;
  const int parts = CeilDiv(c.group_filters, kChunkBytes / static_cast<int64_t>(sizeof(T)));
  const int64_t resident_bytes = Shared(nullptr, parts).bytes;
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
      return Launch(kOp, RoundKernel<T>, CeilDiv(size, kReduceThreads), kReduceThreads, 0, stream,
                    filters, size, memory);
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
      const int chunks = CeilDiv(c.group_filters, kChunkBytes / static_cast<int64_t>(sizeof(T)));
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
