// CUDA kernel of the gradient of the columns on Hopper's warpgroups.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_WARPGROUPS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_WARPGROUPS_H_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/warpgroup.h"
#include "kernels/deformable_conv2d/cuda_columns_block.h"
#include "kernels/deformable_conv2d/cuda_packed_filters.h"

namespace tf_deformable::deformable_conv2d::cuda {

// The tiles of a turn are in use until the turn after; those of the next one are copied meanwhile.
inline constexpr int kColumnsStages = 3;

template <typename T, int kColumns>
struct WarpgroupColumnsGradientShared {
  static constexpr int kRowsTileBytes = kWarpgroupRows * kChunkBytes;
  static constexpr int kColumnsTileBytes = kColumns * kChunkBytes;
  char* grad_output;  // [row_tiles] tiles of kWarpgroupRows
  char* filters;      // [kColumnsStages] tiles of kColumns
  int64_t bytes;

  // row_tiles: kColumnsStages, or all chunks of the filters.
  TF_DEFORMABLE_HOST_DEVICE WarpgroupColumnsGradientShared(char* memory, int row_tiles) {
    SharedLayout layout(memory);
    grad_output = layout.Take<char>(static_cast<int64_t>(row_tiles) * kRowsTileBytes);
    filters = layout.Take<char>(kColumnsStages * kColumnsTileBytes);
    bytes = layout.size();
  }
};

// Starts to copy a chunk of the block's grad_output into a swizzled tile.
template <typename T>
TF_DEFORMABLE_DEVICE void CopySwizzledRows(const Convolution& g, const ColumnsGradientJob<T>& job,
                                           const ColumnsBlock<T>& block, int32_t chunk,
                                           char* tile) {
  constexpr int kLanes = 16 / sizeof(T), kRowVectors = kChunkBytes / 16;
#pragma unroll
  for (int first = 0; first < kWarpgroupRows * kRowVectors; first += kThreads) {
    const int row = (first + ThreadIndex()) / kRowVectors, vector = ThreadIndex() % kRowVectors;
    const int32_t at = chunk * kChunk<T> + vector * kLanes;
    const bool present = row < block.rows && at < g.group_filters;
    CopyAsync16(
        tile + SwizzledPlace(row, vector),
        present ? block.grad_output + static_cast<int64_t>(row) * g.filters + at : job.grad_output,
        present);
  }
}

// Rounds so many bytes of shared memory to TF32, all threads together.
TF_DEFORMABLE_DEVICE void RoundShared(char* memory, int64_t bytes) {
  for (int64_t at = ThreadIndex() * 16; at < bytes; at += kThreads * 16) {
    RoundInPlace(reinterpret_cast<float*>(memory + at));
  }
}

// kResident: all of the rows' grad_output is in shared memory, else a chunk at a time.
template <typename T, int kColumns, bool kResident>
TF_DEFORMABLE_KERNEL(kThreads, kColumns > 128 ? 1 : 2)
void WarpgroupColumnsGradientKernel(Convolution g, ColumnsGradientJob<T> job) {
  if constexpr (kHasWarpgroupProducts) {
    using Shared = WarpgroupColumnsGradientShared<T, kColumns>;
    constexpr int kStages = kColumnsStages, kRowsTileBytes = Shared::kRowsTileBytes;
    constexpr bool kRound = std::is_same_v<T, float>;
    const int32_t chunks = CeilDiv(g.group_filters, kChunk<T>);
    const Shared shared(SharedMemory(), kResident ? chunks : kStages);
    const ColumnsBlock<T> block = MakeColumnsBlock(g, job, kWarpgroupRows);
    const int warpgroup = ThreadIndex() / 128;
    const char* const filters =
        reinterpret_cast<const char*>(job.filters) +
        (static_cast<int64_t>(block.group) * job.column_tiles + block.first_tile) * chunks *
            Shared::kColumnsTileBytes;
    const auto copy_rows = [&](int32_t chunk, int buffer) {
      CopySwizzledRows(g, job, block, chunk, shared.grad_output + buffer * kRowsTileBytes);
    };
    const int32_t turns = block.tiles * chunks;
    const auto copy = [&](int32_t turn) {
      if (turn < turns) {
        CopyPackedTile<kColumns>(filters + static_cast<int64_t>(turn) * Shared::kColumnsTileBytes,
                                 shared.filters + turn % kStages * Shared::kColumnsTileBytes);
        if (!kResident) copy_rows(turn % chunks, turn % kStages);
      }
      CommitCopies();
    };

    if constexpr (kResident) {
      for (int32_t chunk = 0; chunk < chunks; ++chunk) copy_rows(chunk, chunk);
    }
    copy(0);
    if constexpr (kResident && kRound) {
      WaitForCopies<0>();
      SyncThreads();
      RoundShared(shared.grad_output, static_cast<int64_t>(chunks) * kRowsTileBytes);
    }
    int32_t turn = 0;
    for (int32_t tile = 0; tile < block.tiles; ++tile) {
      WarpgroupProduct<T, kColumns> product;
      product.Clear();
      for (int32_t chunk = 0; chunk < chunks; ++chunk, ++turn) {
        char* const rows =
            shared.grad_output + (kResident ? chunk : turn % kStages) * kRowsTileBytes;
        WaitForCopies<0>();
        if constexpr (!kResident && kRound) {
          SyncThreads();
          RoundShared(rows, kRowsTileBytes);
        }
        ShowToWarpgroups();
        SyncThreads();  // this turn's tiles are there, those of two turns ago have been read
        copy(turn + 1);
        product.Issue(rows + warpgroup * (kRowsTileBytes / 2),
                      shared.filters + turn % kStages * Shared::kColumnsTileBytes);
        WaitForWarpgroupProducts<1>();
      }
      WaitForWarpgroupProducts<0>();
      product.ForEachInterleavedRun([&](int row_of_warpgroup, int run, const auto& sums) {
        const int row = warpgroup * WarpgroupProduct<T, kColumns>::kRows + row_of_warpgroup;
        if (row >= block.rows) return;
        StoreColumns<T, true>(g, sums, block.group, block.first_pixel + row,
                              (block.first_tile + tile) * kColumns + run, job.columns);
      });
    }
  }
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_GRADIENT_WARPGROUPS_H_
