// CUDA kernels of the gradients of the RoI pooling family, and their launches.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_BACKWARD_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_BACKWARD_H_

#include <algorithm>
#include <cstdint>

#include "kernels/base/integers.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/runs.h"
#include "kernels/roi_pool/cuda_deterministic.h"
#include "kernels/roi_pool/cuda_launch.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable::roi_pool::cuda {

// Where a launch of the gradient writes.
template <typename A>
struct Gradients {
  A* grad_inputs;  // [images of the job, H, W, C]; null: not these
  A* partials;     // for (dy, dx, mask), [class bins from first_class_bin on, 3]; null: not these
};

// Sums over the lines of a class bin of products of what they read and the upstream gradient.
template <typename A>
struct BinDots {
  A value = 0, slope_y = 0, slope_x = 0;
};

// Adds to the gradient of the inputs, if it is not null, what kLanes channels of a class bin add to
// it, and to the dots their products with the inputs, if these are not null. Both begin at the
// first channel of the class bin; the first of the kLanes is `channel`. Of the lines there are so
// many rows and columns.
template <typename T, int kLanes>
TF_DEFORMABLE_DEVICE void AddChannels(const Geometry& g, const ClassBinLines<ComputeType<T>>& lines,
                                      int rows, int columns, ComputeType<T> scale,
                                      ComputeType<T> mask, int32_t channel,
                                      const ComputeType<T> (&upstream)[kLanes], const T* inputs,
                                      ComputeType<T>* grad_inputs, BinDots<ComputeType<T>>* dots) {
  using A = ComputeType<T>;
  for (int a = 0; a < rows; ++a) {
    const Line<A> row = lines.lines[0][a];
    const A row_scale = row.weight * scale * mask;
    A row_dot = 0, row_slope = 0;
    for (int b = 0; b < columns; ++b) {
      const Line<A> column = lines.lines[1][b];
      const int64_t at = (row.at * g.width + column.at) * g.channels + channel;
      if (inputs != nullptr) {
        A values[kLanes], dot = 0;
        LoadRun<T, kLanes>(inputs + at, values);
#pragma unroll
        for (int k = 0; k < kLanes; ++k) dot += upstream[k] * values[k];
        row_dot += column.weight * dot;
        row_slope += column.slope * dot;
      }
      if (grad_inputs != nullptr) {
        A update[kLanes];
#pragma unroll
        for (int k = 0; k < kLanes; ++k) update[k] = row_scale * column.weight * upstream[k];
        AddRun<A, kLanes>(grad_inputs + at, update);
      }
    }
    dots->value += row.weight * row_dot;
    dots->slope_y += row.slope * row_dot;
    dots->slope_x += row.weight * row_slope;
  }
}

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
        BinDots<A> dots;
        const bool pooled = lane >= 0 && u.image >= 0 && u.finite;
        if (pooled) {
          const ClassBinAxis<A> y = class_bin.axes[0], x = class_bin.axes[1];
          const A scale = ScaleOf(y, x);
          const bool reads = scale == scale;
          const A mask = tensors.mask ? LoadSampling(tensors.mask, index / g.classes) : A{1};
          const int64_t map_size = g.height * g.width * g.channels;
          const T* const inputs = gradients.partials == nullptr
                                      ? nullptr
                                      : tensors.inputs + u.image * map_size + FirstChannel(g, u);
          A* const grad_inputs = gradients.grad_inputs == nullptr
                                     ? nullptr
                                     : gradients.grad_inputs +
                                           (u.image - job.first_image) * map_size +
                                           FirstChannel(g, u);
          for (int32_t c = lane * kLanes; reads && c < channels; c += job.lanes * kLanes) {
            A upstream[kLanes];
            LoadRun<T, kLanes>(tensors.grad_output + index * channels + c, upstream);
            AddChannels<T, kLanes>(g, class_bin, y.size, x.size, scale, mask, c, upstream, inputs,
                                   grad_inputs, &dots);
          }
          dots.value *= scale;
          dots.slope_y *= y.shift * scale * mask;
          dots.slope_x *= x.shift * scale * mask;
        }
        if (gradients.partials == nullptr) return;
        for (int lanes = job.lanes / 2; lanes > 0; lanes /= 2) {
          dots.value += ShuffleXor(dots.value, lanes);
          dots.slope_y += ShuffleXor(dots.slope_y, lanes);
          dots.slope_x += ShuffleXor(dots.slope_x, lanes);
        }
        if (lane != 0) return;
        A* const partial = gradients.partials + (index - job.first_class_bin) * 3;
        const A nothing = u.image < 0 ? A{0} : NotANumber<A>();
        partial[0] = pooled ? dots.slope_y : nothing;
        partial[1] = pooled ? dots.slope_x : nothing;
        partial[2] = pooled ? dots.value : nothing;
      });
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
  if (!IsInStep(job, tensors.box_indices[first_box + box])) return;
  const A* const of_box = partials + box * g.bins() * g.classes * 3;
  if (is_mask) {
    A total = 0;
    for (int64_t cls = 0; cls < g.classes; ++cls) {
      total += of_box[(i % per_box * g.classes + cls) * 3 + 2];
    }
    StoreSampling(tensors.grad_mask, first_box * g.bins() + i, total);
    return;
  }
  const int64_t cls = i % g.classes, cell = i / g.classes % (g.part_height * g.part_width);
  const int64_t cell_i = cell / g.part_width, cell_j = cell % g.part_width;
  A dy = 0, dx = 0;
  for (int64_t bi = FirstBinOfCell(cell_i, g.pooled_height, g.part_height);
       bi < FirstBinOfCell(cell_i + 1, g.pooled_height, g.part_height); ++bi) {
    for (int64_t bj = FirstBinOfCell(cell_j, g.pooled_width, g.part_width);
         bj < FirstBinOfCell(cell_j + 1, g.pooled_width, g.part_width); ++bj) {
      const A* const partial = of_box + ((bi * g.pooled_width + bj) * g.classes + cls) * 3;
      dy += partial[0];
      dx += partial[1];
    }
  }
  const int64_t at = (first_box * (g.offsets_per_box() / 2) + i) * 2;
  StoreSampling(tensors.grad_offsets, at, dy);
  StoreSampling(tensors.grad_offsets, at + 1, dx);
}

// --- Launching -----------------------------------------------------------------------------------

// The workspace's bounds: sums of the gradient of the inputs, partials of some boxes.
inline constexpr int64_t kInputsGradientBytes = 32 << 20;
inline constexpr int64_t kPartialsBytes = 16 << 20;

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& g, const CudaOptions& options)
    : geometry_(g), deterministic_(options.deterministic), status_(CheckFits(g)) {
  using A = ComputeType<T>;
  DeviceLimits limits;
  if (status_.ok()) status_ = GetDeviceLimits(kOp, options, &limits);
  if (!status_.ok() || g.boxes == 0) return;
  const Blocks blocks = ChooseBlocks<A>(g, limits.multiprocessors);
  class_bins_per_block_ = blocks.class_bins_per_block;
  blocks_ = blocks.blocks;
  shared_bytes_ = blocks.shared_bytes;
  // 16-bit gradients are summed in float and rounded once, some images at a time.
  const int64_t image_bytes =
      kHasWiderSums<T> ? g.height * g.width * g.channels * static_cast<int64_t>(sizeof(A)) : 0;
  images_per_step_ = std::clamp<int64_t>(kInputsGradientBytes / std::max<int64_t>(image_bytes, 1),
                                         1, std::max<int64_t>(g.batch, 1));
  const int64_t box_bytes = g.bins() * g.classes * 3 * static_cast<int64_t>(sizeof(A));
  boxes_per_step_ = std::clamp<int64_t>(kPartialsBytes / box_bytes, 1, g.boxes);
  grad_inputs_at_ = blocks.lines_bytes;
  partials_at_ = RoundUp(grad_inputs_at_ + images_per_step_ * image_bytes, 256);
  workspace_bytes_ = partials_at_ + boxes_per_step_ * box_bytes;
}

template <typename T>
Status BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, void* workspace,
                            void* stream) const {
  using A = ComputeType<T>;
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  const int64_t image_size = g.height * g.width * g.channels;
  if (!kHasWiderSums<T> || g.boxes == 0) {
    const Status status =
        FillZeros(kOp, tensors.grad_inputs, g.batch * image_size * sizeof(T), stream);
    if (!status.ok() || g.boxes == 0) return status;
  }
  char* const memory = static_cast<char*>(workspace);
  Job job = MakeJob(g, class_bins_per_block_, blocks_, grad_inputs_at_ > 0 ? memory : nullptr);
  const bool vectorised = HasWholeRuns(g.class_depth(), 16 / sizeof(T) > 4 ? 16 / sizeof(T) : 4,
                                       {tensors.inputs, tensors.grad_output, tensors.grad_inputs});
  job.lanes = ChooseLanes(CeilDiv(g.class_depth(), vectorised ? 4 : 1));
  const bool reduces = tensors.grad_offsets || tensors.grad_mask;
  const int64_t class_bins_per_box = g.bins() * g.classes;

  for (int64_t image = 0; image < std::max<int64_t>(g.batch, 1); image += images_per_step_) {
    job.first_image = image;
    job.last_image = std::min(image + images_per_step_, std::max<int64_t>(g.batch, 1));
    const int64_t images = std::min(job.last_image, g.batch) - image;
    T* const grad_inputs = tensors.grad_inputs + image * image_size;
    A* const sums = SumsOf(grad_inputs, memory + grad_inputs_at_);
    if (kHasWiderSums<T>) {
      const Status status = FillZeros(kOp, sums, images * image_size * sizeof(A), stream);
      if (!status.ok()) return status;
    }
    if (deterministic_) {
      const Status status =
          Launch(kOp, DeterministicInputsKernel<T>, CeilDiv(images * g.channels, kThreads),
                 kThreads, 0, stream, job, tensors, sums);
      if (!status.ok()) return status;
    }
    for (int64_t box = 0; box < g.boxes; box += boxes_per_step_) {
      job.first_class_bin = box * class_bins_per_box;
      job.last_class_bin = std::min(box + boxes_per_step_, g.boxes) * class_bins_per_box;
      Gradients<A> gradients;
      gradients.grad_inputs = deterministic_ ? nullptr : sums;
      gradients.partials = reduces ? reinterpret_cast<A*>(memory + partials_at_) : nullptr;
      if (deterministic_ && !reduces) break;
      const Status status =
          Launch(kOp, vectorised ? BackwardKernel<T, true> : BackwardKernel<T, false>, blocks_,
                 kThreads, shared_bytes_, stream, job, tensors, gradients);
      if (!status.ok()) return status;
      if (!reduces) continue;
      const int64_t boxes = std::min(boxes_per_step_, g.boxes - box);
      const int64_t results = (tensors.grad_offsets ? boxes * (g.offsets_per_box() / 2) : 0) +
                              (tensors.grad_mask ? boxes * g.bins() : 0);
      const Status reduced =
          Launch(kOp, ReducePartialsKernel<T>, CeilDiv(results, kThreads), kThreads, 0, stream, job,
                 tensors, static_cast<const A*>(gradients.partials));
      if (!reduced.ok()) return reduced;
    }
    const Status status = RoundSums(kOp, sums, images * image_size, grad_inputs, stream);
    if (!status.ok()) return status;
  }
  return Status();
}

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_BACKWARD_H_
