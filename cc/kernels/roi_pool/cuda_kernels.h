// CUDA kernels of the RoI pooling family.
//
//   y(i,j) = mask_ij * sum_s x(p0 + p_s + dp_ij) / n_ij        (Dai et al. 2017, equation 5)
//
// As bins.h says, the sum over samples and corners is a sum over the lines that a bin touches. A
// class bin is a bin of one box for one class; a block takes some class bins, works out the rows
// and columns of each (a thread to a class bin's axis), and then the class bins' channels are
// spread over its threads.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_KERNELS_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_KERNELS_H_

#include <cstdint>
#include <type_traits>

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
  // Only boxes of these images take part; those without an image do with image 0.
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
  int32_t image;   // of a box that is to be left alone: -1
  bool in_window;  // of images
  bool finite;     // and with an image that there is
};

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
  const bool on_batch = image >= 0 && image < g.batch;
  u.in_window =
      on_batch ? image >= job.first_image && image < job.last_image : job.first_image == 0;
  u.image = image == -1 ? -1 : on_batch ? image : 0;
  u.finite = (on_batch || image == -1) && IsFiniteBox(tensors.boxes + 4 * u.box);
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
  return MakeBinSamples<A>(g, of_box, which == 0 ? u.i : u.j,
                           OffsetPixels(axis->offset, axis->shift),
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
// of job.lanes, -1 for threads that have nothing to do but to take part in shuffles.
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
      if (class_bin.in_window && class_bin.image >= 0 && class_bin.finite) {
        MakeLines<T>(job.geometry, tensors, class_bin, i % 2, &lines.axes[i % 2],
                     lines.lines[i % 2]);
      }
    }
    SyncThreads();  // the lines are there
    for (int i = team; i < (class_bins + teams - 1) / teams * teams; i += teams) {
      const int64_t index = first + (i < class_bins ? i : 0);
      const ClassBin class_bin = MakeClassBin<T>(job, tensors, index);
      work(class_bin, index, ClassBinLinesAt<A>(memory, job.capacity, i < class_bins ? i : 0),
           i < class_bins && class_bin.in_window ? lane : -1);
    }
  }
}

template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 4)
void ForwardKernel(Job job, ForwardTensors<T> tensors) {
  using A = ComputeType<T>;
  constexpr int kLanes = kVectors ? 16 / sizeof(T) : 1;
  const Geometry& g = job.geometry;
  const int32_t channels = static_cast<int32_t>(g.class_depth());
  ForEachClassBin<T>(
      job, tensors,
      [&](const ClassBin& u, int64_t index, const ClassBinLines<A>& class_bin, int lane) {
        if (lane < 0) return;
        T* const out = tensors.output + index * channels;
        if (u.image < 0 || !u.finite) {
          const A value = u.image < 0 ? A{0} : NotANumber<A>();
          for (int32_t c = lane; c < channels; c += job.lanes) out[c] = FromCompute<T>(value);
          return;
        }
        const ClassBinAxis<A> y = class_bin.axes[0], x = class_bin.axes[1];
        A scale = ScaleOf(y, x);
        const bool reads = scale == scale;
        if (tensors.mask) scale *= LoadSampling(tensors.mask, index / g.classes);
        const T* const image = tensors.inputs +
                               static_cast<int64_t>(u.image) * g.height * g.width * g.channels +
                               FirstChannel(g, u);
        for (int32_t c = lane * kLanes; c < channels; c += job.lanes * kLanes) {
          A sums[kLanes] = {};
          for (int a = 0; reads && a < y.size; ++a) {
            const Line<A> row = class_bin.lines[0][a];
            const T* const row_of_x = image + row.at * g.width * g.channels + c;
            for (int b = 0; b < x.size; ++b) {
              const Line<A> column = class_bin.lines[1][b];
              const A weight = row.weight * column.weight;
              A values[kLanes];
              LoadRun<T, kLanes>(row_of_x + column.at * g.channels, values);
#pragma unroll
              for (int k = 0; k < kLanes; ++k) sums[k] += weight * values[k];
            }
          }
#pragma unroll
          for (int k = 0; k < kLanes; ++k) sums[k] *= scale;
          StoreElements<T, kLanes>(sums, out + c);
        }
      });
}

// Where a launch of the gradient writes.
template <typename A>
struct Gradients {
  A* grad_inputs;  // [images of the window, H, W, C]; null: not these
  A* partials;     // for (dy, dx, mask), [class bins from first_class_bin on, 3]; null: not these
};

template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 4)
void BackwardKernel(Job job, BackwardTensors<T> tensors, Gradients<ComputeType<T>> gradients) {
  using A = ComputeType<T>;
  constexpr int kLanes = kVectors ? 4 : 1;
  const Geometry& g = job.geometry;
  const int32_t channels = static_cast<int32_t>(g.class_depth());
  ForEachClassBin<T>(
      job, tensors,
      [&](const ClassBin& u, int64_t index, const ClassBinLines<A>& class_bin, int lane) {
        A value = 0, slope_y = 0, slope_x = 0;
        const bool pooled = lane >= 0 && u.image >= 0 && u.finite;
        if (pooled) {
          const ClassBinAxis<A> y = class_bin.axes[0], x = class_bin.axes[1];
          const A scale = ScaleOf(y, x);
          const bool reads = scale == scale;
          const A mask = tensors.mask ? LoadSampling(tensors.mask, index / g.classes) : A{1};
          const int64_t map_size = g.height * g.width * g.channels;
          const T* const image = tensors.inputs + u.image * map_size + FirstChannel(g, u);
          A* const target = gradients.grad_inputs == nullptr
                                ? nullptr
                                : gradients.grad_inputs + (u.image - job.first_image) * map_size +
                                      FirstChannel(g, u);
          for (int32_t c = lane * kLanes; reads && c < channels; c += job.lanes * kLanes) {
            A upstream[kLanes];
            LoadRun<T, kLanes>(tensors.grad_output + index * channels + c, upstream);
            for (int a = 0; a < y.size; ++a) {
              const Line<A> row = class_bin.lines[0][a];
              const A row_scale = row.weight * scale * mask;
              A row_dot = 0, row_slope = 0;
              for (int b = 0; b < x.size; ++b) {
                const Line<A> column = class_bin.lines[1][b];
                const int64_t at = (row.at * g.width + column.at) * g.channels + c;
                if (gradients.partials != nullptr) {
                  A values[kLanes], dot = 0;
                  LoadRun<T, kLanes>(image + at, values);
#pragma unroll
                  for (int k = 0; k < kLanes; ++k) dot += upstream[k] * values[k];
                  row_dot += column.weight * dot;
                  row_slope += column.slope * dot;
                }
                if (target != nullptr) {
                  A update[kLanes];
#pragma unroll
                  for (int k = 0; k < kLanes; ++k) {
                    update[k] = row_scale * column.weight * upstream[k];
                  }
                  AddRun<A, kLanes>(target + at, update);
                }
              }
              value += row.weight * row_dot;
              slope_y += row.slope * row_dot;
              slope_x += row.weight * row_slope;
            }
          }
          value *= scale;
          slope_y *= y.shift * scale * mask;
          slope_x *= x.shift * scale * mask;
        }
        if (gradients.partials == nullptr) return;
        for (int lanes = job.lanes / 2; lanes > 0; lanes /= 2) {
          value += ShuffleXor(value, lanes);
          slope_y += ShuffleXor(slope_y, lanes);
          slope_x += ShuffleXor(slope_x, lanes);
        }
        if (lane != 0) return;
        A* const partial = gradients.partials + (index - job.first_class_bin) * 3;
        const A nothing = u.image < 0 ? A{0} : NotANumber<A>();
        partial[0] = pooled ? slope_y : nothing;
        partial[1] = pooled ? slope_x : nothing;
        partial[2] = pooled ? value : nothing;
      });
}

// The gradient for the inputs with one thread to each channel of an image, which adds all that is
// added to it: the device keeps the order of what one thread adds to one element.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void DeterministicInputsKernel(Job job, BackwardTensors<T> tensors, ComputeType<T>* grad_inputs) {
  using A = ComputeType<T>;
  const Geometry& g = job.geometry;
  const int64_t thread = BlockIndex() * kThreads + ThreadIndex();
  const int64_t image = job.first_image + thread / g.channels;
  if (image >= job.last_image) return;
  const int32_t channel = static_cast<int32_t>(thread % g.channels);
  const int32_t map = channel / static_cast<int32_t>(g.depth);
  const int32_t d = channel % static_cast<int32_t>(g.depth);
  const int32_t cls = d / static_cast<int32_t>(g.class_depth());
  A* const target =
      grad_inputs + (image - job.first_image) * g.height * g.width * g.channels + channel;
  for (int64_t box = 0; box < g.boxes; ++box) {
    if (tensors.box_indices[box] != image) continue;
    for (int64_t bin = 0; bin < g.bins(); ++bin) {
      const int64_t index = (box * g.bins() + bin) * g.classes + cls;
      const ClassBin u = MakeClassBin<T>(job, tensors, index);
      if (!u.finite) break;  // nor are the other bins
      if (MapOfBin(g, u.i, u.j) != map) continue;
      ClassBinAxis<A> y, x;
      const BinSamples<A> samples_y = SamplesOf<T>(g, tensors, u, 0, &y);
      const BinSamples<A> samples_x = SamplesOf<T>(g, tensors, u, 1, &x);
      // The number of samples comes first.
      y.samples = samples_y.count;
      x.samples = samples_x.count;
      A position_y, position_x;
      if (!g.aligned) {
        for (int64_t s = 0; s < g.samples_per_bin; ++s) {
          if (samples_y.Position(s, &position_y)) y.samples += 1;
          if (samples_x.Position(s, &position_x)) x.samples += 1;
        }
      }
      const A scale = ScaleOf(y, x);
      if (scale != scale || g.height == 0 || g.width == 0) continue;
      const A mask = tensors.mask ? LoadSampling(tensors.mask, index / g.classes) : A{1};
      const A upstream =
          ToCompute(tensors.grad_output[(box * g.bins() + bin) * g.depth + d]) * scale * mask;
      for (int64_t sy = samples_y.first; sy < samples_y.last; ++sy) {
        if (!samples_y.Position(sy, &position_y)) continue;
        const PixelPair<A, int32_t> cy = MakePixelPair<int32_t>(position_y);
        for (int64_t sx = samples_x.first; sx < samples_x.last; ++sx) {
          if (!samples_x.Position(sx, &position_x)) continue;
          const PixelPair<A, int32_t> cx = MakePixelPair<int32_t>(position_x);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            const A wy = corner < 2 ? 1 - cy.fraction : cy.fraction;
            const A wx = corner % 2 == 0 ? 1 - cx.fraction : cx.fraction;
            if ((corner >= 2 && cy.fraction == 0) || (corner % 2 != 0 && cx.fraction == 0))
              continue;
            const int64_t at = (cy.low + corner / 2) * g.width + cx.low + corner % 2;
            AtomicAdd(target + at * g.channels, wy * wx * upstream);
          }
        }
      }
    }
  }
}

// Adds up, always in the same order, the bins of each part cell and the classes of each bin, of the
// boxes [first_box, last_box). One thread to a pair of offsets, then one to a mask.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void ReducePartialsKernel(Job job, BackwardTensors<T> tensors, const ComputeType<T>* partials) {
  using A = ComputeType<T>;
  const Geometry& g = job.geometry;
  const int64_t first_box = job.first_class_bin / (g.bins() * g.classes);
  const int64_t boxes = job.last_class_bin / (g.bins() * g.classes) - first_box;
  const int64_t pairs = tensors.grad_offsets ? boxes * (g.offsets_per_box() / 2) : 0;
  const int64_t masks = tensors.grad_mask ? boxes * g.bins() : 0;
  int64_t i = BlockIndex() * kThreads + ThreadIndex();
  if (i >= pairs + masks) return;
  const bool is_mask = i >= pairs;
  if (is_mask) i -= pairs;
  const int64_t per_box = is_mask ? g.bins() : g.offsets_per_box() / 2;
  const int64_t box = i / per_box;
  const int32_t image = tensors.box_indices[first_box + box];
  const bool on_batch = image >= 0 && image < g.batch;
  if (on_batch ? image < job.first_image || image >= job.last_image : job.first_image != 0) return;
  const A* const of_box = partials + box * g.bins() * g.classes * 3;
  if (is_mask) {
    A total = 0;
    for (int64_t cls = 0; cls < g.classes; ++cls) {
      total += of_box[(i % per_box * g.classes + cls) * 3 + 2];
    }
    StoreSampling(tensors.grad_mask, first_box * g.bins() + i, total);
    return;
  }
  const int64_t cls = i % g.classes, part = i / g.classes % (g.part_height * g.part_width);
  const int64_t part_i = part / g.part_width, part_j = part % g.part_width;
  A dy = 0, dx = 0;
  for (int64_t bi = FirstBinOfCell(part_i, g.pooled_height, g.part_height);
       bi < FirstBinOfCell(part_i + 1, g.pooled_height, g.part_height); ++bi) {
    for (int64_t bj = FirstBinOfCell(part_j, g.pooled_width, g.part_width);
         bj < FirstBinOfCell(part_j + 1, g.pooled_width, g.part_width); ++bj) {
      const A* const partial = of_box + ((bi * g.pooled_width + bj) * g.classes + cls) * 3;
      dy += partial[0];
      dx += partial[1];
    }
  }
  const int64_t at = (first_box * (g.offsets_per_box() / 2) + i) * 2;
  StoreSampling(tensors.grad_offsets, at, dy);
  StoreSampling(tensors.grad_offsets, at + 1, dx);
}

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_KERNELS_H_
