// Everything that a plan of a CUDA device is made of. Included once per element type: nvcc compiles
// these in parallel.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_

#include <algorithm>
#include <cstdint>

#include "kernels/deformable_conv2d/cuda_filters_gradient.h"
#include "kernels/deformable_conv2d/cuda_forward.h"
#include "kernels/deformable_conv2d/cuda_inputs_gradient.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& geometry, const CudaOptions& options)
    : geometry_(geometry), options_(options) {
  using A = ComputeType<T>;
  const Geometry& g = geometry_;
  if (g.output_pixels() == 0) return;
  const Convolution& c = convolution_;
  status_ = MakeConvolution(g, &convolution_);
  if (status_.ok()) status_ = GetDeviceLimits(kOp, options_, &limits_);
  if (!status_.ok()) return;
  depthwise_ = g.is_depthwise();
  steps_ = PlanInputsGradient<T>(g, c, options_, limits_);
  workspace_bytes_ = steps_.workspace_bytes;

  const int64_t filters_bytes =
      g.taps() * g.group_channels() * g.filters * static_cast<int64_t>(sizeof(A));
  const int64_t most_splits = std::max<int64_t>(kFiltersPartialsBytes / filters_bytes, 1);
  const FiltersGradientBlocks of_split =
      CountFiltersGradientBlocks<T>(c, depthwise_, UsesFma<T>(options_), limits_.multiprocessors);
  const int64_t units = CeilDiv(g.output_pixels(), depthwise_ ? 256 : 512);
  splits_ = ChooseSplits(of_split.blocks, units, most_splits, of_split.places);
  const bool adds_up = splits_ > 1 || depthwise_;
  workspace_bytes_ = std::max(workspace_bytes_, adds_up ? splits_ * filters_bytes : 0);
}

template <typename T>
Status BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, void* workspace,
                            void* stream) const {
  const Status status = RunInputs(tensors, workspace, stream);
  return status.ok() ? RunFilters(tensors, workspace, stream) : status;
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_
