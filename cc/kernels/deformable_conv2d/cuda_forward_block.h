// What the CUDA kernels of the forward pass share: what a block computes, and the order in which it
// walks along channels and taps.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_BLOCK_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_BLOCK_H_

#include <cstdint>

#include "kernels/deformable_conv2d/cuda_tiles.h"

namespace tf_deformable::deformable_conv2d::cuda {

// A block has a tile of output pixels, and of one group as many filters as its tile has columns.
struct ForwardBlock {
  int64_t tile;
  int32_t number;  // among the blocks of the tile [groups, column tiles]
  int32_t group;
  int32_t filter, filters;  // the first one, among those of all groups; how many there are
};

TF_DEFORMABLE_DEVICE ForwardBlock MakeForwardBlock(const Convolution& g, int32_t column_tiles,
                                                   int columns) {
  const int32_t tile_blocks = g.groups() * column_tiles;
  ForwardBlock block;
  block.tile = BlockIndex() / tile_blocks;
  block.number = static_cast<int32_t>(BlockIndex() - block.tile * tile_blocks);
  block.group = block.number / column_tiles;
  const int32_t column = block.number % column_tiles * columns;
  block.filter = block.group * g.group_filters + column;
  block.filters = Min(columns, g.group_filters - column);
  return block;
}

// How many taps a block holds the corners of at a time.
TF_DEFORMABLE_HOST_DEVICE int32_t CountHeldTaps(int32_t taps) { return Min(taps, kMostHeldTaps); }

// Taps that are held together, and the segment of the group for which they are.
struct HeldTaps {
  int32_t first, count;
  int32_t segment;
  int32_t first_channel;  // of the segment, among those of all groups
};

// Calls work(held) for all taps and all segments of a group.
template <typename F>
TF_DEFORMABLE_DEVICE void ForEachHeldTaps(const Convolution& g, int32_t group, const F& work) {
  for (int32_t first = 0; first < g.taps; first += kMostHeldTaps) {
    for (int32_t segment = 0; segment < g.group_segments(); ++segment) {
      work(HeldTaps{first, Min(kMostHeldTaps, g.taps - first), segment,
                    group * g.group_channels + segment * g.segment});
    }
  }
}

// What a turn samples and multiplies: a chunk of the segment for one of the held taps. All taps of
// a chunk come before the next chunk.
struct ChunkTap {
  int32_t chunk = 0, tap = 0;

  TF_DEFORMABLE_DEVICE void Advance(int32_t taps) {
    if (++tap == taps) {
      tap = 0;
      ++chunk;
    }
  }
};

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_FORWARD_BLOCK_H_
