// CUDA kernels of the gradients of multi-scale deformable attention, and their launches.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_BACKWARD_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_BACKWARD_H_

#include <algorithm>
#include <cstdint>

#include "kernels/base/integers.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/runs.h"
#include "kernels/deformable_attention/cuda_launch.h"
#include "kernels/deformable_attention/cuda_plan.h"

namespace tf_deformable::deformable_attention::cuda {

// grad_value: of the images from that of job.first_row on, in the type of sums; null: not this one.
template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 4)
void BackwardKernel(Job job, BackwardTensors<T> tensors, ComputeType<T>* grad_value) {
  using A = ComputeType<T>;
  constexpr int kRun = kVectors ? 4 : 1;
  const int lane = ThreadIndex() % job.lanes;
  const int64_t row = RowOfTeam(job);
  const bool has_row = row < job.last_row;
  const T* const value = tensors.value + (has_row ? HeadAt(job, row) : 0);
  const T* const grad_output = tensors.grad_output + (has_row ? row * job.depth : 0);
  A* const target = grad_value == nullptr || !has_row
                        ? nullptr
                        : grad_value + HeadAt(job, row) - HeadAt(job, job.first_row);
  ForEachSamples<T>(job, tensors, [&](const Sample<A>* samples, int32_t first, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      const Sample<A>& sample = samples[i];
      A dots[4] = {};
      for (int32_t c = lane * kRun; has_row && c < job.depth; c += job.lanes * kRun) {
        A upstream[kRun];
        LoadRun<T, kRun>(grad_output + c, upstream);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if ((sample.corners >> j & 1) == 0) continue;
          const int64_t at = CornerAt(job, sample, j) + c;
          A values[kRun];
          LoadRun<T, kRun>(value + at, values);
#pragma unroll
          for (int k = 0; k < kRun; ++k) {
            dots[j] += upstream[k] * values[k];
            values[k] = sample.weights[j] * upstream[k];
          }
          if (target != nullptr) AddRun<A, kRun>(target + at, values);
        }
      }
      PointGradients<A> of_point = MakePointGradients(
          sample.fraction_y, sample.fraction_x, sample.weight, dots[0], dots[1], dots[2], dots[3]);
      for (int lanes = job.lanes / 2; lanes > 0; lanes /= 2) {
        of_point.y += ShuffleXor(of_point.y, lanes);
        of_point.x += ShuffleXor(of_point.x, lanes);
        of_point.mask += ShuffleXor(of_point.mask, lanes);
      }
      if (!has_row || lane != 0) continue;
      if (job.normalized) {
        of_point.y *= static_cast<A>(sample.height);
        of_point.x *= static_cast<A>(sample.width);
      }
      const int64_t at = row * job.samples + first + i;
      StoreSampling(tensors.grad_locations, 2 * at, of_point.y);
      StoreSampling(tensors.grad_locations, 2 * at + 1, of_point.x);
      StoreSampling(tensors.grad_weights, at, of_point.mask);
    }
  });
}

// The gradient of the value with a thread to each channel of a level of an image, which adds all
// that is added to it: the device keeps the order of what one thread adds to one element.
// Threads: [images of the job's rows, heads, levels, depth].
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void DeterministicValueKernel(Job job, BackwardTensors<T> tensors, ComputeType<T>* grad_value) {
  using A = ComputeType<T>;
  int64_t index = BlockIndex() * kThreads + ThreadIndex();
  const int32_t channel = static_cast<int32_t>(index % job.depth);
  index /= job.depth;
  const int32_t number = static_cast<int32_t>(index % job.num_levels);
  index /= job.num_levels;
  const int32_t head = static_cast<int32_t>(index % job.heads);
  const int64_t image = index / job.heads;  // of the step
  const int64_t image_row = job.first_row + image * job.image_rows;
  if (image_row >= job.last_row) return;
  const CudaLevel& level = job.levels[number];
  const int32_t first_sample = number == 0 ? 0 : job.levels[number - 1].last_sample;
  A* const target = grad_value + (image * job.pixels * job.heads + head) * job.depth + channel;
  for (int64_t row = image_row + head; row < image_row + job.image_rows; row += job.heads) {
    const A upstream = ToCompute(tensors.grad_output[row * job.depth + channel]);
    for (int32_t i = first_sample; i < level.last_sample; ++i) {
      const Sample<A> sample = MakeSample<T>(job, tensors, row, i, level);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if ((sample.corners >> j & 1) == 0) continue;
        AtomicAdd(target + CornerAt(job, sample, j), sample.weights[j] * upstream);
      }
    }
  }
}

// --- Launching -----------------------------------------------------------------------------------

// The sums of the gradient of the value, of 16 bits, take so much of the workspace at most.
inline constexpr int64_t kValueGradientBytes = 32 << 20;

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& g, const CudaOptions& options)
    : geometry_(g), deterministic_(options.deterministic), status_(CheckFits(g)) {
  using A = ComputeType<T>;
  images_per_step_ = std::max<int64_t>(g.batch, 1);
  workspace_bytes_ = 0;
  if (!status_.ok() || HasNoRows(g) || !kHasWiderSums<T>) return;
  const int64_t image_bytes = g.pixels * g.channels() * static_cast<int64_t>(sizeof(A));
  images_per_step_ = std::clamp<int64_t>(kValueGradientBytes / std::max<int64_t>(image_bytes, 1), 1,
                                         images_per_step_);
  workspace_bytes_ = images_per_step_ * image_bytes;
}

template <typename T>
Status BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, void* workspace,
                            void* stream) const {
  using A = ComputeType<T>;
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
    T* const grad_value = tensors.grad_value + image * image_size;
    A* const sums = SumsOf(grad_value, workspace);
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
    if (status.ok()) status = RoundSums(kOp, sums, images * image_size, grad_value, stream);
    if (!status.ok()) return status;
  }
  return Status();
}

}  // namespace tf_deformable::deformable_attention::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_BACKWARD_H_
