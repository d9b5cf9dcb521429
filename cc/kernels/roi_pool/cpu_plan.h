// RoI pooling (plain, deformable, position-sensitive, modulated) and its gradients on the CPU.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_PLAN_H_

#include <cstdint>

#include "kernels/base/executor.h"
#include "kernels/roi_pool/cpu_kernels.h"
#include "kernels/roi_pool/geometry.h"

namespace tf_deformable::roi_pool::cpu {

// As for the convolution (deformable_conv2d/cpu_forward_plan.h): made for one call, cut by the
// shapes
// alone, the workspace aligned to 64 bytes. Box indices have passed CheckBoxIndices.
template <typename T>
class ForwardPlan {
 public:
  ForwardPlan(const Geometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const ForwardTensors<T>& tensors, Executor& executor, void* workspace) const;

 private:
  const Kernels<T>& kernels_;
  ForwardJob<T> job_ = {};
  int64_t workspace_bytes_;
};

template <typename T>
class BackwardPlan {
 public:
  BackwardPlan(const Geometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const BackwardTensors<T>& tensors, Executor& executor, void* workspace) const;

 private:
  const Kernels<T>& kernels_;
  BackwardJob<T> job_ = {};
  int64_t images_per_part_, boxes_per_step_;
  int64_t grad_inputs_at_, partials_at_;  // bytes from the start of the workspace
  int64_t workspace_bytes_;
};

}  // namespace tf_deformable::roi_pool::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_PLAN_H_
