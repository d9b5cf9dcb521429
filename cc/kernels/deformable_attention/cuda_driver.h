// Everything that a plan of a CUDA device is made of. Included once per element type: nvcc compiles
// these in parallel.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_DRIVER_H_

#include <algorithm>
#include <string>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/runs.h"
#include "kernels/deformable_attention/cuda_kernels.h"
#include "kernels/deformable_attention/cuda_plan.h"

namespace tf_deformable::deformable_attention::cuda {
inline constexpr int64_t kValueGradientBytes = 32 << 20;
// More would leave a multiprocessor few blocks.
inline constexpr int64_t kSamplesInSharedMemory = 24 << 10;
inline constexpr int64_t kMostSamplesAtOnce = 32;

inline constexpr char kOp[] = "multi_scale_deformable_attention";

inline Status CheckFits(const Geometry& g) {
  constexpr int64_t kMost = 1 << 30;
  constexpr int64_t kMostPixels = 1 << 24;  // along an axis: exact as float
  bool fits = g.pixels <= kMost && g.channels() <= kMost && g.samples <= kMost &&
              g.queries <= kMost && g.batch <= kMost && g.levels <= kMostLevels;
  for (const Level& level : g.maps) {
    fits &= level.height <= kMostPixels && level.width <= kMostPixels;
  }
  if (fits) return Status();
  return Status(Status::Code::kTooLarge,
                std::string(kOp) + ": a GPU takes at most " + std::to_string(kMostLevels) +
                    " levels of at most 2^24 pixels along an axis, and 2^30 pixels, channels, "
                    "samples and queries, got value " +
                    ToString({g.batch, g.pixels, g.heads, g.depth}) + ", " +
                    std::to_string(g.levels) + " levels, " + std::to_string(g.queries) +
                    " queries");
}

// Whether there is nothing to sample for; an output then has no element, or is 0.
inline bool HasNoRows(const Geometry& g) { return g.rows() == 0; }

inline Job MakeJob(const Geometry& g) {
  Job job = {};
  job.image_rows = g.queries * g.heads;
  job.first_row = 0;
  job.last_row = g.rows();
  job.pixels = g.pixels;
  job.heads = static_cast<int32_t>(g.heads);
  job.depth = static_cast<int32_t>(g.depth);
  job.num_levels = static_cast<int32_t>(g.levels);
  job.samples = static_cast<int32_t>(g.samples);
  job.normalized = g.coordinates == Coordinates::kNormalized;
  int64_t samples = 0;
  for (size_t i = 0; i < g.maps.size(); ++i) {
    samples += g.maps[i].points;
    job.levels[i] = {static_cast<int32_t>(g.maps[i].height), static_cast<int32_t>(g.maps[i].width),
                     static_cast<int32_t>(g.maps[i].first_pixel), static_cast<int32_t>(samples)};
  }
  return job;
}

// Launches a kernel with teams for the rows of the job, whose threads have runs of so many
// channels.
template <typename T, typename... Parameters>
Status LaunchTeams(void (*kernel)(Job, Parameters...), Job job, int run, void* stream,
                   const Parameters&... parameters) {
  constexpr int64_t kBytes = sizeof(Sample<ComputeType<T>>);
  job.lanes = ChooseLanes(CeilDiv(job.depth, run));
  const int64_t teams = kThreads / job.lanes;
  job.samples_at_once =
      std::clamp<int64_t>(kSamplesInSharedMemory / (teams * kBytes) - 1, 1, kMostSamplesAtOnce);
  job.samples_at_once = std::max(std::min(job.samples_at_once, job.samples), 1);
  const int64_t shared_bytes = teams * SamplesStride(job.samples_at_once) * kBytes;
  return Launch(kOp, kernel, CeilDiv(job.last_row - job.first_row, teams), kThreads, shared_bytes,
                stream, job, parameters...);
}

template <typename T>
ForwardPlan<T>::ForwardPlan(const Geometry& geometry, const CudaOptions&)
    : geometry_(geometry), status_(CheckFits(geometry)) {}

template <typename T>
Status ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, void*, void* stream) const {
  if (!status_.ok() || HasNoRows(geometry_)) return status_;
  constexpr int kRun = 16 / sizeof(T);
  const bool vectorised = HasWholeRuns(geometry_.depth, kRun, {tensors.value, tensors.output});
  return LaunchTeams<T>(vectorised ? ForwardKernel<T, true> : ForwardKernel<T, false>,
                        MakeJob(geometry_), vectorised ? kRun : 1, stream, tensors);
}

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& g, const CudaOptions& options)
    : geometry_(g), deterministic_(options.deterministic), status_(CheckFits(g)) {
  using A = ComputeType<T>;
  images_per_step_ = std::max<int64_t>(g.batch, 1);
  workspace_bytes_ = 0;
  if (!status_.ok() || HasNoRows(g) || std::is_same_v<T, A>) return;
  const int64_t image_bytes = g.pixels * g.channels() * static_cast<int64_t>(sizeof(A));
  images_per_step_ = std::clamp<int64_t>(kValueGradientBytes / std::max<int64_t>(image_bytes, 1), 1,
                                         images_per_step_);
  workspace_bytes_ = images_per_step_ * image_bytes;
}

template <typename T>
Status BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, void* workspace,
                            void* stream) const {
  using A = ComputeType<T>;
  constexpr bool kWidened = !std::is_same_v<T, A>;
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  const int64_t image_size = g.pixels * g.channels();
  if (HasNoRows(g)) {
    return FillZeros(kOp, tensors.grad_value, g.batch * image_size * sizeof(T), stream);
  }
  constexpr int kRun = 4;
  const bool vectorised = HasWholeRuns(g.depth, 16 / sizeof(T) > kRun ? 16 / sizeof(T) : kRun,
                                       {tensors.value, tensors.grad_output, tensors.grad_value});
  Job job = MakeJob(g);
  for (int64_t image = 0; image < g.batch; image += images_per_step_) {
    const int64_t images = std::min(images_per_step_, g.batch - image);
    job.first_row = image * job.image_rows;
    job.last_row = (image + images) * job.image_rows;
    A* sums;
    if constexpr (kWidened) {
      sums = static_cast<A*>(workspace);
    } else {
      sums = tensors.grad_value + image * image_size;
    }
    Status status = FillZeros(kOp, sums, images * image_size * sizeof(A), stream);
    if (status.ok() && deterministic_ && g.samples > 0) {
      const int64_t threads = images * g.heads * g.levels * g.depth;
      status = Launch(kOp, DeterministicValueKernel<T>, CeilDiv(threads, kThreads), kThreads, 0,
                      stream, job, tensors, sums);
    }
    if (status.ok()) {
      A* const scattered = deterministic_ ? nullptr : sums;
      status = LaunchTeams<T>(vectorised ? BackwardKernel<T, true> : BackwardKernel<T, false>, job,
                              vectorised ? kRun : 1, stream, tensors, scattered);
    }
    if constexpr (kWidened) {
      const int64_t size = images * image_size;
      if (status.ok()) {
        status =
            Launch(kOp, SumKernel<T>, CeilDiv(size, kReduceThreads), kReduceThreads, 0, stream,
                   static_cast<const A*>(sums), size, 1, tensors.grad_value + image * image_size);
      }
    }
    if (!status.ok()) return status;
  }
  return Status();
}

}  // namespace tf_deformable::deformable_attention::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_DRIVER_H_
