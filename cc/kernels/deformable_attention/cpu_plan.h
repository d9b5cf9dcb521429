// Deformable attention and its gradients on the CPU.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CPU_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CPU_PLAN_H_

#include <cstdint>
#include <vector>

#include "kernels/base/executor.h"
#include "kernels/deformable_attention/cpu_kernels.h"
#include "kernels/deformable_attention/geometry.h"

namespace tf_deformable::deformable_attention::cpu {

// As for the convolution (deformable_conv2d/cpu_forward_plan.h): made for one call, cut by the
// shapes alone, the workspace bounded and aligned to 64 bytes.
template <typename T>
class ForwardPlan {
 public:
  ForwardPlan(const Geometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const ForwardTensors<T>& tensors, Executor& executor, void* workspace) const;

 private:
  const Kernels<T>& kernels_;
  ForwardJob<T> job_ = {};
  std::vector<Level> levels_;
  int64_t maps_at_, worker_at_, worker_size_;  // in elements
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
  std::vector<Level> levels_;
  int64_t images_, images_per_step_, queries_per_step_;
  int64_t maps_at_, grad_value_at_, partials_at_, worker_at_, worker_size_;  // in elements
  int64_t workspace_bytes_;
};

}  // namespace tf_deformable::deformable_attention::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CPU_PLAN_H_
