// CUDA kernel of the forward pass of multi-scale deformable attention, and its launch.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_FORWARD_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_FORWARD_H_

#include <cstdint>

#include "kernels/cuda/runs.h"
#include "kernels/deformable_attention/cuda_launch.h"
#include "kernels/deformable_attention/cuda_plan.h"

namespace tf_deformable::deformable_attention::cuda {

template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 4)
void ForwardKernel(Job job, ForwardTensors<T> tensors) {
  using A = ComputeType<T>;
  constexpr int kRun = kVectors ? 16 / sizeof(T) : 1;
  const int lane = ThreadIndex() % job.lanes;
  const int64_t row = RowOfTeam(job);
  const bool has_row = row < job.last_row;
  const T* const value = tensors.value + (has_row ? HeadAt(job, row) : 0);
  // So many channels of a row at a time; all teams go around as often.
  for (int32_t begin = 0; begin < job.depth; begin += job.lanes * kRun) {
    const int32_t channel = begin + lane * kRun;
    const bool has_channels = has_row && channel < job.depth;
    A sums[kRun] = {};
    ForEachSamples<T>(job, tensors, [&](const Sample<A>* samples, int32_t, int32_t count) {
      if (!has_channels) return;
#pragma unroll 2
      for (int32_t i = 0; i < count; ++i) {
        const Sample<A>& sample = samples[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          A values[kRun] = {};
          if ((sample.corners >> j & 1) != 0) {
            LoadRun<T, kRun>(value + CornerAt(job, sample, j) + channel, values);
          }
#pragma unroll
          for (int k = 0; k < kRun; ++k) sums[k] += sample.weights[j] * values[k];
        }
      }
    });
    if (has_channels) StoreElements<T, kRun>(sums, tensors.output + row * job.depth + channel);
  }
}

// --- Launching -----------------------------------------------------------------------------------

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

}  // namespace tf_deformable::deformable_attention::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_FORWARD_H_
