// CUDA kernels that list the samples of a deformable convolution by the cell of the map they lie
// in, for the gradient of the inputs: who owns a pixel finds all that is added to it, and adds it
// in an order that is always the same.
//
// The cell (y0, x0) has the corners (y0, x0) to (y0 + 1, x0 + 1); y0 and x0 begin at -1. A map is
// an image and an offset group. Its lists lie anywhere among those of the others, but within a list
// samples are in ascending order.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_CELL_LISTS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_CELL_LISTS_H_

#include <cstdint>

#include "kernels/deformable_conv2d/cuda_launch.h"

namespace tf_deformable::deformable_conv2d::cuda {

// The list of a cell: samples [first, first + count).
struct alignas(8) CellList {
  int32_t first, count;
};

template <typename A>
struct alignas(4 * sizeof(A)) CellSample {
  A fraction_y, fraction_x, mask;
  int32_t row;  // pixel * taps + tap; pixels are counted from the first one listed
};

template <typename A>
TF_DEFORMABLE_DEVICE CellSample<A> LoadCellSample(const CellSample<A>* from) {
  Vector16 words[sizeof(CellSample<A>) / 16];
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(CellSample<A>) / 16); ++i) {
    words[i] = LoadGlobal16(reinterpret_cast<const Vector16*>(from) + i);
  }
  CellSample<A> sample;
  __builtin_memcpy(&sample, words, sizeof(sample));
  return sample;
}

// Where a sample stands among those of its cell, in no order; cell -1: it is off the map.
struct alignas(8) SamplePlace {
  int32_t cell, place;
};

// Output pixels [g.first_pixel, g.last_pixel) of whole images, or some of one.
template <typename A>
struct CellLists {
  CellList* lists;         // [images, offset groups, H + 1, W + 1]
  CellSample<A>* samples;  // [pixels * offset groups * taps], by cell
  int32_t* listed;         // one number: how many places are taken
  SamplePlace* places;  // [pixels, offset groups, taps]; only while lists are made, as is `order`
  int32_t* order;       // sample numbers [pixels * offset groups * taps], by cell

  TF_DEFORMABLE_HOST_DEVICE static int64_t Cells(const Convolution& g) {
    return (static_cast<int64_t>(g.height) + 1) * (g.width + 1);
  }
};

// A sample by its number in the tensor of the masks, counted from the first listed pixel.
struct ListedSample {
  TilePixel pixel;
  int32_t offset_group, tap;
  int32_t row;  // as CellSample's
};

TF_DEFORMABLE_HOST_DEVICE int64_t CountListedSamples(const Convolution& g) {
  return g.pixels() * g.offset_groups * g.taps;
}

TF_DEFORMABLE_DEVICE ListedSample MakeListedSample(const Convolution& g, int64_t number) {
  const int64_t of_pixel = number / g.taps;
  const int64_t pixel = of_pixel / g.offset_groups;
  const int32_t tap = static_cast<int32_t>(number - of_pixel * g.taps);
  return {MakeTilePixel(g, g.first_pixel + pixel),
          static_cast<int32_t>(of_pixel - pixel * g.offset_groups), tap,
          static_cast<int32_t>(pixel * g.taps + tap)};
}

// The lists of a sample's map.
TF_DEFORMABLE_DEVICE int64_t FirstList(const Convolution& g, const ListedSample& sample) {
  const int64_t image_listed = sample.pixel.image - g.first_pixel / g.output_size();
  return (image_listed * g.offset_groups + sample.offset_group) * CellLists<float>::Cells(g);
}

// The sampling point whose `pixel` counts cells, from (-1, -1) on.
template <typename A>
TF_DEFORMABLE_DEVICE SamplingPoint<A> CellOf(const Convolution& g, const ListedSample& sample,
                                             const Offset<A>& offset) {
  SamplingPoint<A> point = PointOf(g, sample.pixel, sample.tap, offset, g.width + 1);
  point.pixel += g.width + 2;
  return point;
}

// Counts the samples of each cell (the counts are 0 before). Gradients for samples off the map are
// written here, for nobody will see these again.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void CountSamplesKernel(Convolution g, SamplingTensor<const T> offsets,
                        SamplingTensor<const T> mask, SamplingTensor<T> grad_offsets,
                        SamplingTensor<T> grad_mask, CellLists<ComputeType<T>> to) {
  using A = ComputeType<T>;
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  if (i >= CountListedSamples(g)) return;
  const ListedSample sample = MakeListedSample(g, i);
  const Offset<A> offset =
      LoadOffset(g, offsets, mask, sample.pixel, sample.offset_group, sample.tap);
  const SamplingPoint<A> point = CellOf(g, sample, offset);
  if (point.corners != 0) {
    CellList* const list = to.lists + FirstList(g, sample) + point.pixel;
    to.places[i] = {point.pixel, AtomicAdd(&list->count, 1)};
    return;
  }
  to.places[i] = {-1, 0};
  const PointGradients<A> gradients =
      MakePointGradients<A>(point.fraction_y, point.fraction_x, offset.mask, 0, 0, 0, 0);
  const int64_t at = g.first_pixel * g.offset_groups * g.taps + i;
  StoreSampling(grad_offsets, 2 * at, gradients.y);
  StoreSampling(grad_offsets, 2 * at + 1, gradients.x);
  if (grad_mask) StoreSampling(grad_mask, at, gradients.mask);
}

// Gives each list its place.
template <typename A>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void PlaceListsKernel(CellLists<A> lists, int64_t size) {
  int32_t* const counts = reinterpret_cast<int32_t*>(SharedMemory());  // [2, kThreads]
  const int thread = ThreadIndex();
  const int64_t i = BlockIndex() * kThreads + thread;
  const int32_t count = i < size ? lists.lists[i].count : 0;
  counts[thread] = count;
  SyncThreads();
  int from = 0;
#pragma unroll
  for (int distance = 1; distance < kThreads; distance *= 2) {
    const int32_t before = thread >= distance ? counts[from + thread - distance] : 0;
    counts[kThreads - from + thread] = counts[from + thread] + before;
    from = kThreads - from;
    SyncThreads();
  }
  const int32_t end = counts[from + thread];
  SyncThreads();
  if (thread == kThreads - 1) counts[0] = AtomicAdd(lists.listed, end);
  SyncThreads();
  if (i < size) lists.lists[i].first = counts[0] + end - count;
}

template <typename A>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void FillListsKernel(Convolution g, CellLists<A> lists) {
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  if (i >= CountListedSamples(g)) return;
  const SamplePlace place = lists.places[i];
  if (place.cell < 0) return;
  const ListedSample sample = MakeListedSample(g, i);
  const int64_t list = FirstList(g, sample) + place.cell;
  lists.order[lists.lists[list].first + place.place] = static_cast<int32_t>(i);
}

// Writes each sample to the place that its number has in its list.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void SortListsKernel(Convolution g, SamplingTensor<const T> offsets, SamplingTensor<const T> mask,
                     CellLists<ComputeType<T>> lists) {
  using A = ComputeType<T>;
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  if (i >= CountListedSamples(g)) return;
  const SamplePlace place = lists.places[i];
  if (place.cell < 0) return;
  const ListedSample sample = MakeListedSample(g, i);
  const CellList list = lists.lists[FirstList(g, sample) + place.cell];
  int32_t before = 0;
#pragma unroll 4
  for (int32_t k = 0; k < list.count; ++k) before += lists.order[list.first + k] < i ? 1 : 0;
  const Offset<A> offset =
      LoadOffset(g, offsets, mask, sample.pixel, sample.offset_group, sample.tap);
  const SamplingPoint<A> point = CellOf(g, sample, offset);
  lists.samples[list.first + before] = {point.fraction_y, point.fraction_x, offset.mask,
                                        sample.row};
}

// --- Launching -----------------------------------------------------------------------------------

// How the memory of the lists of some samples and maps is laid out.
template <typename A>
struct CellListsMemory {
  CellLists<A> lists;
  int64_t kept_bytes;     // of what is read once the lists are made
  int64_t passing_bytes;  // free once the lists are made

  CellListsMemory(char* kept, char* passing, int64_t maps, int64_t cells, int64_t samples) {
    SharedLayout layout(kept);
    lists.samples = layout.Take<CellSample<A>>(samples);
    // Zeroed together.
    lists.lists = layout.Take<CellList>(maps * cells);
    lists.listed = layout.Take<int32_t>(1);
    kept_bytes = layout.size();
    SharedLayout other(passing);
    lists.places = other.Take<SamplePlace>(samples);
    lists.order = other.Take<int32_t>(samples);
    passing_bytes = other.size();
  }
};

// Makes the lists of the pixels of `c`.
template <typename T>
Status MakeCellLists(const Convolution& c, const BackwardTensors<T>& tensors, int64_t maps,
                     const CellLists<ComputeType<T>>& lists, void* stream) {
  using A = ComputeType<T>;
  const int64_t size = maps * CellLists<A>::Cells(c);
  const int64_t blocks = CeilDiv(CountListedSamples(c), kThreads);
  const int64_t zeroed =
      reinterpret_cast<char*>(lists.listed + 1) - reinterpret_cast<char*>(lists.lists);
  Status status = FillZeros(kOp, lists.lists, zeroed, stream);
  if (status.ok()) {
    status = Launch(kOp, CountSamplesKernel<T>, blocks, kThreads, 0, stream, c, tensors.offsets,
                    tensors.mask, tensors.grad_offsets, tensors.grad_mask, lists);
  }
  if (status.ok()) {
    status = Launch(kOp, PlaceListsKernel<A>, CeilDiv(size, kThreads), kThreads,
                    2 * kThreads * sizeof(int32_t), stream, lists, size);
  }
  if (status.ok()) {
    status = Launch(kOp, FillListsKernel<A>, blocks, kThreads, 0, stream, c, lists);
  }
  if (!status.ok()) return status;
  return Launch(kOp, SortListsKernel<T>, blocks, kThreads, 0, stream, c, tensors.offsets,
                tensors.mask, lists);
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_CELL_LISTS_H_
