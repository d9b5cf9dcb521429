// The gradients of the deformable convolution on the CPU.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_BACKWARD_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_BACKWARD_PLAN_H_

#include <cstdint>
#include <vector>

#include "kernels/base/executor.h"
#include "kernels/deformable_conv2d/cpu_kernels.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"

namespace tf_deformable::deformable_conv2d::cpu {

// As the plan of the forward pass (cpu_forward_plan.h).
template <typename T>
class BackwardPlan {
 public:
  BackwardPlan(const Geometry& geometry, int num_workers);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  void Run(const BackwardTensors<T>& tensors, Executor& executor, void* workspace) const;

 private:
  // The filters that are packed at a time: all taps of some channel blocks, or some taps of one.
  struct Slab {
    int64_t first_block, last_block;
    int64_t first_tap, last_tap;
  };

  // The passes follow each other in the same workspace. Each returns how many elements it needs.
  int64_t PlanFilters(const Geometry& geometry, bool depthwise, int num_workers);
  int64_t PlanInputs(const Geometry& geometry, bool depthwise, int num_workers);
  // Cuts a step's images and blocks into the parts whose sums are held at a time. Returns how many
  // channels a part has at most.
  int64_t PlanParts(const Geometry& geometry, int num_workers);
  int64_t ChannelsOf(int64_t first_block, int64_t last_block) const;
  void RunFilters(const BackwardTensors<T>& tensors, Executor& executor,
                  ComputeType<T>* workspace) const;
  void RunInputs(const BackwardTensors<T>& tensors, Executor& executor,
                 ComputeType<T>* workspace) const;
  void PackSlab(const Slab& slab, int64_t first_block, int64_t last_block, Executor& executor,
                InputsGradientJob<T>* job) const;
  void SumPart(InputsGradientJob<T>* part, Executor& executor, ComputeType<T>* worker_space) const;
  void RoundPart(const InputsGradientJob<T>& job, Executor& executor, T* grad_inputs) const;
  int64_t BlockProducts(const InputsGradientJob<T>& job) const;

  const Kernels<T>& kernels_;
  FiltersGradientJob<T> filters_job_ = {};
  int64_t filters_worker_at_, filters_worker_size_;
  InputsGradientJob<T> inputs_job_ = {};
  std::vector<ChannelBlock> blocks_;
  std::vector<Slab> slabs_;
  int64_t images_per_step_, pixels_per_step_;
  int64_t images_per_part_, blocks_per_part_;
  bool has_unfinished_ = false;  // offset groups are cut into parts
  int64_t packed_at_, partials_at_, unfinished_at_, grad_inputs_at_, split_sums_at_;
  int64_t inputs_worker_at_, inputs_worker_size_;
  int64_t workspace_bytes_;
};

}  // namespace tf_deformable::deformable_conv2d::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CPU_BACKWARD_PLAN_H_
