// Everything that a plan of a CUDA device is made of. Included once per element type: nvcc compiles
// these in parallel.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DRIVER_H_

#include <algorithm>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/runs.h"
#include "kernels/cuda/warpgroup.h"
#include "kernels/roi_pool/cuda_kernels.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable::roi_pool::cuda {
inline constexpr int64_t kInputsGradientBytes = 32 << 20;
inline constexpr int64_t kPartialsBytes = 16 << 20;
inline constexpr int64_t kLinesInSharedMemory =
    40 << 10;  // more would leave a multiprocessor few blocks
inline constexpr int64_t kMostClassBins = kThreads / 2;  // a thread to each axis
inline constexpr int64_t kBlocksOfEach = 8;              // multiprocessor: enough to keep it busy

inline constexpr char kOp[] = "deformable_roi_pool";

inline Status CheckFits(const Geometry& g) {
  constexpr int64_t kMost = 1 << 30;
  constexpr int64_t kMostPixels = 1 << 24;  // along an axis: exact as float
  if (g.height <= kMostPixels && g.width <= kMostPixels && g.batch <= kMost &&
      g.channels <= kMost && g.bins() <= kMost && g.classes <= kMost) {
    return Status();
  }
  return Status(Status::Code::kTooLarge,
                std::string(kOp) +
                    ": a GPU takes maps of at most 2^24 pixels along an axis, and 2^30 channels "
                    "and bins, got " +
                    ToString({g.batch, g.height, g.width, g.channels}));
}

// How many class_bins a block takes at a time, and where their lines are.
struct Blocks {
  int64_t class_bins_per_block, blocks, shared_bytes, lines_bytes;
};

template <typename A>
Blocks ChooseBlocks(const Geometry& g, int multiprocessors) {
  const int64_t class_bin_bytes = ClassBinBytes<A>(AxisCapacity(g));
  const int64_t class_bins = g.boxes * g.bins() * g.classes;
  Blocks b;
  b.class_bins_per_block =
      std::clamp<int64_t>(kLinesInSharedMemory / class_bin_bytes, 1, kMostClassBins);
  // Few class_bins are spread over all multiprocessors.
  b.class_bins_per_block = std::clamp<int64_t>(CeilDiv(class_bins, kBlocksOfEach * multiprocessors),
                                               1, b.class_bins_per_block);
  b.blocks =
      std::min(CeilDiv(class_bins, b.class_bins_per_block), 4 * kBlocksOfEach * multiprocessors);
  const bool shared = b.class_bins_per_block * class_bin_bytes <= kLinesInSharedMemory;
  b.shared_bytes = shared ? b.class_bins_per_block * class_bin_bytes : 0;
  if (!shared) b.blocks = std::min<int64_t>(b.blocks, multiprocessors);
  b.lines_bytes = shared ? 0 : RoundUp(b.blocks * b.class_bins_per_block * class_bin_bytes, 256);
  return b;
}

inline Job MakeJob(const Geometry& g, int64_t class_bins_per_block, int64_t blocks, char* lines) {
  Job job;
  job.geometry = g;
  job.first_class_bin = 0;
  job.last_class_bin = g.boxes * g.bins() * g.classes;
  job.blocks = blocks;
  job.class_bins_per_block = static_cast<int32_t>(class_bins_per_block);
  job.capacity = static_cast<int32_t>(AxisCapacity(g));
  job.first_image = 0;
  job.last_image = std::max<int64_t>(g.batch, 1);
  job.lines = lines;
  return job;
}

template <typename T>
ForwardPlan<T>::ForwardPlan(const Geometry& geometry, const CudaOptions& options)
    : geometry_(geometry), status_(CheckFits(geometry)) {
  DeviceLimits limits;
  if (status_.ok()) status_ = GetDeviceLimits(kOp, options, &limits);
  if (!status_.ok() || geometry.boxes == 0) return;
  const Blocks blocks = ChooseBlocks<ComputeType<T>>(geometry, limits.multiprocessors);
  class_bins_per_block_ = blocks.class_bins_per_block;
  blocks_ = blocks.blocks;
  shared_bytes_ = blocks.shared_bytes;
  workspace_bytes_ = blocks.lines_bytes;
}

template <typename T>
Status ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, void* workspace, void* stream) const {
  if (!status_.ok() || geometry_.boxes == 0) return status_;
  Job job = MakeJob(geometry_, class_bins_per_block_, blocks_,
                    workspace_bytes_ > 0 ? static_cast<char*>(workspace) : nullptr);
  const bool vectorised =
      HasWholeRuns(geometry_.class_depth(), 16 / sizeof(T), {tensors.inputs, tensors.output});
  const int64_t run = vectorised ? 16 / sizeof(T) : 1;
  job.lanes = ChooseLanes(CeilDiv(geometry_.class_depth(), run));
  return Launch(kOp, vectorised ? ForwardKernel<T, true> : ForwardKernel<T, false>, blocks_,
                kThreads, shared_bytes_, stream, job, tensors);
}

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
  const bool widened = !std::is_same_v<T, A>;
  const int64_t image_bytes =
      widened ? g.height * g.width * g.channels * static_cast<int64_t>(sizeof(A)) : 0;
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
  constexpr bool kWidened = !std::is_same_v<T, A>;
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  const int64_t image_size = g.height * g.width * g.channels;
  if (!kWidened || g.boxes == 0) {
    const Status status =
        FillZeros(kOp, tensors.grad_inputs, g.batch * image_size * sizeof(T), stream);
    if (!status.ok() || g.boxes == 0) return status;
  }
  char* const space = static_cast<char*>(workspace);
  Job job = MakeJob(g, class_bins_per_block_, blocks_, grad_inputs_at_ > 0 ? space : nullptr);
  const bool vectorised = HasWholeRuns(g.class_depth(), 16 / sizeof(T) > 4 ? 16 / sizeof(T) : 4,
                                       {tensors.inputs, tensors.grad_output, tensors.grad_inputs});
  job.lanes = ChooseLanes(CeilDiv(g.class_depth(), vectorised ? 4 : 1));
  const bool reduces = tensors.grad_offsets || tensors.grad_mask;
  const int64_t class_bins_per_box = g.bins() * g.classes;

  for (int64_t image = 0; image < std::max<int64_t>(g.batch, 1); image += images_per_step_) {
    job.first_image = image;
    job.last_image = std::min(image + images_per_step_, std::max<int64_t>(g.batch, 1));
    const int64_t images = std::min(job.last_image, g.batch) - image;
    A* window;
    if constexpr (kWidened) {
      window = reinterpret_cast<A*>(space + grad_inputs_at_);
      const Status status = FillZeros(kOp, window, images * image_size * sizeof(A), stream);
      if (!status.ok()) return status;
    } else {
      window = tensors.grad_inputs + image * image_size;
    }
    if (deterministic_) {
      const Status status =
          Launch(kOp, DeterministicInputsKernel<T>, CeilDiv(images * g.channels, kThreads),
                 kThreads, 0, stream, job, tensors, window);
      if (!status.ok()) return status;
    }
    for (int64_t box = 0; box < g.boxes; box += boxes_per_step_) {
      job.first_class_bin = box * class_bins_per_box;
      job.last_class_bin = std::min(box + boxes_per_step_, g.boxes) * class_bins_per_box;
      Gradients<A> gradients;
      gradients.grad_inputs = deterministic_ ? nullptr : window;
      gradients.partials = reduces ? reinterpret_cast<A*>(space + partials_at_) : nullptr;
      if (deterministic_ && !reduces) break;
      const Status status =
          Launch(kOp, vectorised ? BackwardKernel<T, true> : BackwardKernel<T, false>, blocks_,
                 kThreads, shared_bytes_, stream, job, tensors, gradients);
      if (!status.ok()) return status;
      if (!reduces) continue;
      const int64_t boxes = std::min(boxes_per_step_, g.boxes - box);
      const int64_t sums = (tensors.grad_offsets ? boxes * (g.offsets_per_box() / 2) : 0) +
                           (tensors.grad_mask ? boxes * g.bins() : 0);
      const Status reduced =
          Launch(kOp, ReducePartialsKernel<T>, CeilDiv(sums, kThreads), kThreads, 0, stream, job,
                 tensors, static_cast<const A*>(gradients.partials));
      if (!reduced.ok()) return reduced;
    }
    if constexpr (kWidened) {
      const int64_t size = images * image_size;
      const Status status =
          Launch(kOp, SumKernel<T>, CeilDiv(size, kReduceThreads), kReduceThreads, 0, stream,
                 static_cast<const A*>(window), size, 1, tensors.grad_inputs + image * image_size);
      if (!status.ok()) return status;
    }
  }
  return Status();
}

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DRIVER_H_
