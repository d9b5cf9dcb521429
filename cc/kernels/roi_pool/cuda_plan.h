// RoI pooling (plain, deformable, position-sensitive, modulated) and its gradients on a CUDA
// device, the current one.
//
// An index of a box that CheckBoxIndices would refuse gives NaN, as a box that is not finite: the
// indices are on the device, and to look at them here would mean to wait for it.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_PLAN_H_

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/options.h"
#include "kernels/roi_pool/geometry.h"
#include "kernels/roi_pool/tensors.h"

namespace tf_deformable::roi_pool::cuda {

inline constexpr char kOp[] = "deformable_roi_pool";

// As for the convolution (deformable_conv2d/cuda_plan.h).
template <typename T>
class ForwardPlan {
 public:
  ForwardPlan(const Geometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  [[nodiscard]] Status Run(const ForwardTensors<T>& tensors, void* workspace, void* stream) const;

 private:
  Geometry geometry_;
  Status status_;  // of planning: Run returns it, if it is an error
  int64_t class_bins_per_block_, blocks_, shared_bytes_, workspace_bytes_ = 0;
};

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
  int64_t class_bins_per_block_, blocks_, shared_bytes_;
  int64_t images_per_step_, boxes_per_step_;
  int64_t grad_inputs_at_, partials_at_;  // in bytes
  int64_t workspace_bytes_ = 0;
};

// Converts boxes to the type in which positions are computed.
[[nodiscard]] Status ConvertBoxes(const float* from, int64_t size, double* to, void* stream);
[[nodiscard]] Status ConvertBoxes(const double* from, int64_t size, float* to, void* stream);

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_PLAN_H_
