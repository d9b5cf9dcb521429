// The filters as warpgroups multiply them: cut into the tiles that a kernel has in shared memory,
// each as it lies there, so that a copy is a plain one. Filters of float are rounded to TF32.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PACKED_FILTERS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PACKED_FILTERS_H_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/warpgroup.h"
#include "kernels/deformable_conv2d/cuda_launch.h"

namespace tf_deformable::deformable_conv2d::cuda {

inline constexpr int kWarpgroupRows = 2 * 64;  // of a block: 64 to each of its two warpgroups

// A matrix of each group, [columns, depth], of which the element (n, k) lies at
// n * column_stride + k * depth_stride from the group's first one. The depth is cut into sections
// of `section` elements, and these into chunks; what a last chunk lacks is 0.
struct PackedFilters {
  int32_t groups, columns, sections, section;
  int64_t group_stride, column_stride, depth_stride;
  int32_t tile_columns;

  TF_DEFORMABLE_HOST_DEVICE int32_t column_tiles() const { return CeilDiv(columns, tile_columns); }
  template <typename T>
  TF_DEFORMABLE_HOST_DEVICE int32_t section_chunks() const {
    return CeilDiv(section, kChunk<T>);
  }
  int64_t tile_bytes() const { return static_cast<int64_t>(tile_columns) * kChunkBytes; }
  // [groups, column tiles, sections, chunks of a section] tiles.
  template <typename T>
  int64_t bytes() const {
    return static_cast<int64_t>(groups) * column_tiles() * sections * section_chunks<T>() *
           tile_bytes();
  }
};

// For the forward pass: columns are filters; sections are taps and, for each, segments.
inline PackedFilters PackForForward(const Convolution& c, int32_t tile_columns) {
  PackedFilters p;
  p.groups = c.groups();
  p.columns = c.group_filters;
  p.sections = c.taps * c.group_segments();
  p.section = c.segment;
  p.group_stride = c.group_filters;
  p.column_stride = 1;
  p.depth_stride = c.filters;
  p.tile_columns = tile_columns;
  return p;
}
// For the gradient of the columns: columns are taps and, for each, channels; the depth is filters.
inline PackedFilters PackForColumnsGradient(const Convolution& c, int32_t tile_columns) {
  PackedFilters p;
  p.groups = c.groups();
  p.columns = c.taps * c.group_channels;
  p.sections = 1;
  p.section = c.group_filters;
  p.group_stride = c.group_filters;
  p.column_stride = c.filters;
  p.depth_stride = 1;
  p.tile_columns = tile_columns;
  return p;
}

// Whether little enough of the tiles is filled with zeros, as of groups with few channels or
// filters it is not: these waste workspace, and the time of the tensor cores.
template <typename T>
bool PacksWell(const Convolution& c, const PackedFilters& p) {
  constexpr int64_t kMostWaste = 4, kSmall = 1 << 20;
  const int64_t size = static_cast<int64_t>(c.taps) * c.group_channels * c.filters;
  return p.bytes<T>() <= kMostWaste * size * static_cast<int64_t>(sizeof(T)) + kSmall;
}

// A thread to each 16 bytes. Neighbouring threads read neighbouring elements.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void PackFiltersKernel(PackedFilters p, const T* filters, T* to) {
  constexpr int kLanes = 16 / sizeof(T), kRowVectors = kChunkBytes / 16;
  const int64_t tile_vectors = static_cast<int64_t>(p.tile_columns) * kRowVectors;
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  const int64_t tile = i / tile_vectors;
  const int32_t within = static_cast<int32_t>(i - tile * tile_vectors);
  const int32_t chunks = p.section_chunks<T>();
  const int32_t chunk = static_cast<int32_t>(tile % chunks);
  const int32_t section = static_cast<int32_t>(tile / chunks % p.sections);
  const int64_t column_tile = tile / chunks / p.sections;
  const int32_t group = static_cast<int32_t>(column_tile / p.column_tiles());
  if (group >= p.groups) return;
  const bool columns_first = p.column_stride == 1;
  const int32_t row = columns_first ? within % p.tile_columns : within / kRowVectors;
  const int32_t vector = columns_first ? within / p.tile_columns : within % kRowVectors;
  const int32_t column =
      static_cast<int32_t>(column_tile - static_cast<int64_t>(group) * p.column_tiles()) *
          p.tile_columns +
      row;
  const T* const from = filters + group * p.group_stride + column * p.column_stride +
                        static_cast<int64_t>(section) * p.section * p.depth_stride;
  Elements<T> elements;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    const int32_t depth = chunk * kChunk<T> + vector * kLanes + k;
    const bool present = column < p.columns && depth < p.section;
    elements.values[k] = present ? from[depth * p.depth_stride] : FromCompute<T>(0);
    if constexpr (std::is_same_v<T, float>) {
      elements.values[k] = BitsToFloat(ToTensorFloat32(elements.values[k]));
    }
  }
  char* const target = reinterpret_cast<char*>(to) + tile * tile_vectors * 16 +
                       SwizzledPlace(Interleaved(row), vector);
  *reinterpret_cast<Vector16*>(target) = elements.ToVector();
}

template <typename T>
Status PackFilters(const PackedFilters& p, const T* filters, void* to, void* stream) {
  return Launch(kOp, PackFiltersKernel<T>, CeilDiv(p.bytes<T>() / 16, kThreads), kThreads, 0,
                stream, p, filters, static_cast<T*>(to));
}

// Starts to copy a packed tile into shared memory, for all threads of the block.
template <int kColumns>
TF_DEFORMABLE_DEVICE void CopyPackedTile(const char* from, char* to) {
  constexpr int kBytes = kColumns * kChunkBytes;
  static_assert(kBytes % (16 * kThreads) == 0, "each thread copies as much");
#pragma unroll
  for (int first = 0; first < kBytes; first += 16 * kThreads) {
    const int at = first + ThreadIndex() * 16;
    CopyAsync16(to + at, from + at, true);
  }
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PACKED_FILTERS_H_
