// The deformable convolution on the CPU.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_FORWARD_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_FORWARD_PLAN_H_

#include <cstdint>

#include "kernels/base/executor.h"
#include "kernels/cpu/driver.h"
#include "kernels/deformable_conv2d/cpu_kernels.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"

namespace tf_deformable::deformable_conv2d::cpu {

// Cuts the work into parts that fit the caches, from the shapes alone (never from the number of
// threads: the order of sums must not depend on it). Made for one call: plan, allocate, Run.
// The workspace is bounded whatever the shape and must be aligned to 64 bytes.
template <typename T>
class ForwardPlan {
 public:
  ForwardPlan(const Geometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const ForwardTensors<T>& tensors, Executor& executor, void* workspace) const;

 private:
  bool PlanTogether(int num_workers);
  bool PlanFewPixels(int num_workers);
  void PlanTiles(int num_workers);
  void PlanDepthwise(int num_workers);
  int64_t SharedPixels(int64_t block) const;
  void AddTile(Layout<ComputeType<T>>& worker, int64_t samples);
  void RunTogether(const ForwardJob<T>& job, Executor& executor, ComputeType<T>* workers) const;
  void RunFewPixels(const ForwardJob<T>& job, Executor& executor, ComputeType<T>* workers) const;
  void RunTiles(ForwardJob<T>& job, Executor& executor, ComputeType<T>* workers) const;

  const Kernels<T>& kernels_;
  ForwardJob<T> job_ = {};
  int64_t groups_per_slab_, filters_per_slab_;
  int64_t worker_at_, worker_size_;
  int64_t workspace_bytes_ = 0;
};

}  // namespace tf_deformable::deformable_conv2d::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_FORWARD_PLAN_H_
