// Multi-scale deformable attention and its gradients on a CUDA device, the current one.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_PLAN_H_

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/options.h"
#include "kernels/deformable_attention/geometry.h"
#include "kernels/deformable_attention/tensors.h"

namespace tf_deformable::deformable_attention::cuda {

inline constexpr char kOp[] = "multi_scale_deformable_attention";

// As for the convolution (deformable_conv2d/cuda_plan.h).
template <typename T>
class ForwardPlan {
 public:
  ForwardPlan(const Geometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return 0; }
  [[nodiscard]] Status Run(const ForwardTensors<T>& tensors, void* workspace, void* stream) const;

 private:
  Geometry geometry_;
  Status status_;  // of planning: Run returns it, if it is an error
};

// The gradient of the value is added up by atomic operations, in an order that varies, or, if the
// options ask for the same bits in every run, by threads that own what they add to. Of 16-bit types
// it is added up in float, some images at a time: in at most 32 MiB, or, if that is more, in what
// one image takes.
template <typename T>
class BackwardPlan {
 public:
  BackwardPlan(const Geometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  [[nodiscard]] Status Run(const BackwardTensors<T>& tensors, void* workspace, void* stream) const;

 private:
  Geometry geometry_;
  bool deterministic_;
  Status status_;
  int64_t images_per_step_;
  int64_t workspace_bytes_;
};

}  // namespace tf_deformable::deformable_attention::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_PLAN_H_
