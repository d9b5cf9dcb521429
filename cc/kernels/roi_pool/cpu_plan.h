// RoI pooling (plain, deformable, position-sensitive, modulated) and its gradients on the CPU.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_PLAN_H_

#include <cstdint>

#include "kernels/base/executor.h"
#include "kernels/roi_pool/cpu_kernels.h"
#include "kernels/roi_pool/geometry.h"

namespace tf_deformable {

// As for the convolution (deformable_conv2d/cpu_plan.h): made for one call, cut by the shapes
// alone, the workspace aligned to 64 bytes. Box indices have passed CheckBoxIndices.
template <typename T>
class RoIPoolForwardPlan {
 public:
  RoIPoolForwardPlan(const RoIPoolGeometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const RoIPoolTensors<T>& tensors, T* output, Executor& executor, void* workspace) const;

 private:
  const RoIPoolKernels<T>& kernels_;
  RoIPoolForwardJob<T> job_ = {};
  int64_t workspace_bytes_;
};

// grad_offsets and grad_mask are null where there are no offsets and no mask.
template <typename T>
class RoIPoolBackwardPlan {
 public:
  RoIPoolBackwardPlan(const RoIPoolGeometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const RoIPoolTensors<T>& tensors, const T* grad_output, T* grad_inputs,
           SamplingTensor<T> grad_offsets, SamplingTensor<T> grad_mask, Executor& executor,
           void* workspace) const;

 private:
  const RoIPoolKernels<T>& kernels_;
  RoIPoolBackwardJob<T> job_ = {};
  int64_t boxes_per_step_;
  int64_t grad_inputs_at_, partials_at_;  // bytes from the start of the workspace
  int64_t workspace_bytes_;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_PLAN_H_
