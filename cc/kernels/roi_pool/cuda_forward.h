// CUDA kernel of the forward pass of the RoI pooling family, and its launch.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_FORWARD_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_FORWARD_H_

#include <cstdint>

#include "kernels/base/integers.h"
#include "kernels/cuda/runs.h"
#include "kernels/roi_pool/cuda_launch.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable::roi_pool::cuda {

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

// --- Launching -----------------------------------------------------------------------------------

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

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_FORWARD_H_
