// What the CUDA kernels of the RoI pooling family share: class bins, and the lines that they read.
//
//   y(i,j) = mask_ij * sum_s x(p0 + p_s + dp_ij) / n_ij        (Dai et al. 2017, equation 5)
//
// As bins.h says, the sum over samples and corners is a sum over the lines that a bin touches. A
// class bin is a bin of one box for one class; a block takes some class bins, works out the rows
// and columns of each (a thread to a class bin's axis), and then the class bins' channels are
// spread over its threads.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_CLASS_BINS_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_CLASS_BINS_H_

#include <cstdint>

#include "kernels/base/integers.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/primitives.h"
#include "kernels/roi_pool/bins.h"
#include "kernels/roi_pool/tensors.h"

namespace tf_deformable::roi_pool::cuda {

using namespace tf_deformable::cuda;

inline constexpr int kThreads = 128;

template <typename A>
using Line = AxisLine<A, int32_t>;

// One axis of a class bin.
template <typename A>
struct ClassBinAxis {
  int32_t size;  // lines
  A samples;     // kept (aligned: all), the axis' factor of n_ij
  A shift;       // derivative of the position for the normalised offset
  A offset;      // normalised
};

// What a block needs to know of the launch. Class bins are counted over (box, bin, class).
struct Job {
  Geometry geometry;
  int64_t first_class_bin, last_class_bin;
  int64_t blocks;
  int32_t class_bins_per_block;  // at a time
  int32_t capacity;              // lines of an axis
  int32_t lanes;  // threads that share a class bin's channels, a power of 2, at most a warp
  // Only boxes of these images are read; those without an image belong to image 0.
  int64_t first_image, last_image;
  char* lines;  // those of all blocks, if they do not fit into shared memory; else null
};

template <typename A>
TF_DEFORMABLE_HOST_DEVICE int64_t ClassBinBytes(int64_t capacity) {
  return 2 * (static_cast<int64_t>(sizeof(ClassBinAxis<A>)) +
              capacity * static_cast<int64_t>(sizeof(Line<A>)));
}

struct ClassBin {
  int64_t box;
  int32_t i, j, cls;
  int32_t image;  // of a box that is to be left alone: -1
  bool in_step;   // the box is of one of the job's images
  bool finite;    // and with an image that there is
};

// Whether there is such an image; a box may name any.
TF_DEFORMABLE_DEVICE bool HasImage(const Geometry& g, int32_t image) {
  return image >= 0 && image < g.batch;
}

// Whether a box of that image is one of the step's.
TF_DEFORMABLE_DEVICE bool IsInStep(const Job& job, int32_t image) {
  if (!HasImage(job.geometry, image)) return job.first_image == 0;
  return image >= job.first_image && image < job.last_image;
}

template <typename T>
TF_DEFORMABLE_DEVICE ClassBin MakeClassBin(const Job& job, const InputTensors<T>& tensors,
                                           int64_t class_bin) {
  const Geometry& g = job.geometry;
  ClassBin u;
  u.cls = static_cast<int32_t>(class_bin % g.classes);
  const int64_t bin = class_bin / g.classes;
  u.j = static_cast<int32_t>(bin % g.pooled_width);
  u.i = static_cast<int32_t>(bin / g.pooled_width % g.pooled_height);
  u.box = bin / g.bins();
  const int32_t image = tensors.box_indices[u.box];
  const bool has_image = HasImage(g, image);
  u.in_step = IsInStep(job, image);
  u.image = image == -1 ? -1 : has_image ? image : 0;
  u.finite = (has_image || image == -1) && IsFiniteBox(tensors.boxes + 4 * u.box);
  return u;
}

template <typename T>
TF_DEFORMABLE_DEVICE ComputeType<T> OffsetOf(const Geometry& g,
                                             const SamplingTensor<const T>& offsets,
                                             const ClassBin& u, int which) {
  if (!offsets) return 0;
  return LoadSampling(offsets, OffsetsOfBin(g, u.box, u.i, u.j, u.cls) + which);
}

// The samples of a class bin along an axis (0: y, 1: x).
template <typename T>
TF_DEFORMABLE_DEVICE BinSamples<ComputeType<T>> SamplesOf(const Geometry& g,
                                                          const InputTensors<T>& tensors,
                                                          const ClassBin& u, int which,
                                                          ClassBinAxis<ComputeType<T>>* axis) {
  using A = ComputeType<T>;
  const A* const corners = tensors.boxes + 4 * u.box;
  const BoxAxis<A> of_box = MakeBoxAxis<A>(g, corners[which], corners[which + 2],
                                           which == 0 ? g.pooled_height : g.pooled_width);
  axis->size = 0;
  axis->samples = 0;
  axis->shift = PixelsPerOffset(g, of_box);
  axis->offset = OffsetOf<T>(g, tensors.offsets, u, which);
  return MakeBinSamples<A>(g, of_box, which == 0 ? u.i : u.j, axis->offset * axis->shift,
                           which == 0 ? g.height : g.width);
}

template <typename T>
TF_DEFORMABLE_DEVICE void MakeLines(const Geometry& g, const InputTensors<T>& tensors,
                                    const ClassBin& u, int which,
                                    ClassBinAxis<ComputeType<T>>* result,
                                    Line<ComputeType<T>>* lines) {
  using A = ComputeType<T>;
  ClassBinAxis<A> axis;
  AxisLines<A, int32_t> collected;
  collected.lines = lines;
  collected.Collect(SamplesOf<T>(g, tensors, u, which, &axis));
  axis.size = collected.size;
  axis.samples = collected.samples;
  *result = axis;
}

// Both axes of a class bin in the block's memory.
template <typename A>
struct ClassBinLines {
  ClassBinAxis<A>* axes;  // [2]
  Line<A>* lines[2];
};

template <typename A>
TF_DEFORMABLE_DEVICE ClassBinLines<A> ClassBinLinesAt(char* memory, int32_t capacity,
                                                      int64_t class_bin) {
  char* const at = memory + class_bin * ClassBinBytes<A>(capacity);
  ClassBinLines<A> lines;
  lines.axes = reinterpret_cast<ClassBinAxis<A>*>(at);
  lines.lines[0] = reinterpret_cast<Line<A>*>(lines.axes + 2);
  lines.lines[1] = lines.lines[0] + capacity;
  return lines;
}

template <typename A>
TF_DEFORMABLE_DEVICE A ScaleOf(const ClassBinAxis<A>& y, const ClassBinAxis<A>& x) {
  return BinScale(y.samples, x.samples, y.offset, x.offset);
}

// First channel, in inputs, that a class bin reads.
TF_DEFORMABLE_DEVICE int64_t FirstChannel(const Geometry& g, const ClassBin& u) {
  return MapOfBin(g, u.i, u.j) * g.depth + u.cls * g.class_depth();
}

// Calls work(class_bin, index, lines, lane) for all class bins of the block, by all threads: `lane`
// of job.lanes, -1 for threads that have nothing to do but to go along with shuffles.
template <typename T, typename F>
TF_DEFORMABLE_DEVICE void ForEachClassBin(const Job& job, const InputTensors<T>& tensors,
                                          const F& work) {
  using A = ComputeType<T>;
  const int64_t block_bytes = job.class_bins_per_block * ClassBinBytes<A>(job.capacity);
  char* const memory =
      job.lines != nullptr ? job.lines + BlockIndex() * block_bytes : SharedMemory();
  const int thread = ThreadIndex();
  const int teams = kThreads / job.lanes, team = thread / job.lanes, lane = thread % job.lanes;
  for (int64_t first = job.first_class_bin + BlockIndex() * job.class_bins_per_block;
       first < job.last_class_bin; first += job.blocks * job.class_bins_per_block) {
    const int64_t left = job.last_class_bin - first;
    const int class_bins =
        left < job.class_bins_per_block ? static_cast<int>(left) : job.class_bins_per_block;
    SyncThreads();  // the last class bins are done with
    for (int i = thread; i < 2 * class_bins; i += kThreads) {
      const ClassBin class_bin = MakeClassBin<T>(job, tensors, first + i / 2);
      const ClassBinLines<A> lines = ClassBinLinesAt<A>(memory, job.capacity, i / 2);
      if (class_bin.in_step && class_bin.image >= 0 && class_bin.finite) {
        MakeLines<T>(job.geometry, tensors, class_bin, i % 2, &lines.axes[i % 2],
                     lines.lines[i % 2]);
      }
    }
    SyncThreads();  // the lines are there
    for (int i = team; i < RoundUp(class_bins, teams); i += teams) {
      const int64_t index = first + (i < class_bins ? i : 0);
      const ClassBin class_bin = MakeClassBin<T>(job, tensors, index);
      work(class_bin, index, ClassBinLinesAt<A>(memory, job.capacity, i < class_bins ? i : 0),
           i < class_bins && class_bin.in_step ? lane : -1);
    }
  }
}

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_CLASS_BINS_H_
