// What the CUDA kernels of the gradient of the columns share: what a block computes, and where its
// sums go.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_BLOCK_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_BLOCK_H_

#include <cstdint>

#include "kernels/deformable_conv2d/cuda_tiles.h"

namespace tf_deformable::deformable_conv2d::cuda {

// The columns of a group are its taps and, for each, its channels, as they lie in the filters. The
// depth is the group's filters, in chunks.
template <typename T>
struct ColumnsGradientJob {
  const T* grad_output;
  const T* filters;  // rounded to TF32, if that is what is multiplied
  T* columns;        // [pixels from the first of the launch on, taps, C]
  int32_t column_tiles, tiles_per_block, splits;
};

// A block has some pixels of one group, its rows, and some tiles of columns, one after the other.
template <typename T>
struct ColumnsBlock {
  int32_t group;
  int64_t first_pixel;  // counted from the first one of the launch
  int rows;
  int32_t first_tile, tiles;
  const T* grad_output;  // of the first row and the group's first filter
};

template <typename T>
TF_DEFORMABLE_DEVICE ColumnsBlock<T> MakeColumnsBlock(const Convolution& g,
                                                      const ColumnsGradientJob<T>& job,
                                                      int most_rows) {
  const int32_t groups = g.groups();
  const int32_t split = static_cast<int32_t>(BlockIndex() % job.splits);
  ColumnsBlock<T> block;
  block.group = static_cast<int32_t>(BlockIndex() / job.splits % groups);
  block.first_pixel = BlockIndex() / job.splits / groups * most_rows;
  block.rows =
      static_cast<int>(Min(static_cast<int64_t>(most_rows), g.pixels() - block.first_pixel));
  block.first_tile = split * job.tiles_per_block;
  block.tiles = Min(job.tiles_per_block, job.column_tiles - block.first_tile);
  block.grad_output = job.grad_output + (g.first_pixel + block.first_pixel) * g.filters +
                      static_cast<int64_t>(block.group) * g.group_filters;
  return block;
}

// Stores a run of a group's columns of a pixel, which is counted from the first one of the launch.
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

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_COLUMNS_BLOCK_H_
