// The branch that predicts offsets and mask, and its gradients, on the CPU.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_BRANCH_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_BRANCH_PLAN_H_

#include <cstdint>
#include <vector>

#include "kernels/base/executor.h"
#include "kernels/deformable_conv2d/cpu_kernels.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"

namespace tf_deformable::deformable_conv2d::cpu {

// As ForwardPlan (cpu_forward_plan.h) and BackwardPlan. The geometry is that of ParseBranch.
template <typename T>
class BranchForwardPlan {
 public:
  BranchForwardPlan(const Geometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const BranchTensors<T>& tensors, Executor& executor, void* workspace) const;

 private:
  const Kernels<T>& kernels_;
  BranchJob<T> job_ = {};
  int64_t columns_per_slab_;
  int64_t worker_at_, worker_size_;
  int64_t workspace_bytes_ = 0;
};

template <typename T>
class BranchBackwardPlan {
 public:
  BranchBackwardPlan(const Geometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const BranchGradientTensors<T>& tensors, Executor& executor, void* workspace) const;

 private:
  // The pixels of the inputs at which the same taps arrive.
  struct InputsPass {
    BranchInputsJob<T> job;
    int64_t columns_per_slab;
    int64_t worker_at, worker_size;
  };

  // The passes follow each other in the same workspace. Each returns how many elements it needs.
  int64_t PlanFilters(const Geometry& geometry, int num_workers);
  int64_t PlanInputs(const Geometry& geometry, int num_workers);
  void RunFilters(const BranchGradientTensors<T>& tensors, Executor& executor,
                  ComputeType<T>* workspace) const;
  void RunInputs(const BranchGradientTensors<T>& tensors, Executor& executor,
                 ComputeType<T>* workspace) const;

  const Kernels<T>& kernels_;
  BranchFiltersJob<T> filters_job_ = {};
  int64_t filters_worker_at_, filters_worker_size_;
  std::vector<InputsPass> inputs_passes_;
  bool clears_inputs_ = false;  // no tap reads some pixels
  int64_t workspace_bytes_;
};

}  // namespace tf_deformable::deformable_conv2d::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_BRANCH_PLAN_H_
