// RoI pooling (plain, deformable, position-sensitive, modulated) and its gradients on a CUDA
// device, the current one.
//
// An index of a box that CheckBoxIndices would refuse gives NaN, as a box that is not finite: the
// indices are on the device, and to look at them here would mean to wait for it.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_PLAN_H_

#include <cstdint>
#include <string>

#include "kernels/cuda/options.h"
#include "kernels/roi_pool/geometry.h"
#include "kernels/roi_pool/tensors.h"

namespace tf_deformable {

// As for the convolution (deformable_conv2d/cuda_plan.h).
template <typename T>
class RoIPoolForwardCudaPlan {
 public:
  RoIPoolForwardCudaPlan(const RoIPoolGeometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  std::string Run(const RoIPoolTensors<T>& tensors, T* output, void* workspace, void* stream) const;

 private:
  RoIPoolGeometry geometry_;
  std::string error_;  // what Run returns
  int64_t units_per_block_, blocks_, shared_bytes_, workspace_bytes_ = 0;
};

// grad_offsets and grad_mask are null where there are no offsets and no mask.
template <typename T>
class RoIPoolBackwardCudaPlan {
 public:
  RoIPoolBackwardCudaPlan(const RoIPoolGeometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  std::string Run(const RoIPoolTensors<T>& tensors, const T* grad_output, T* grad_inputs,
                  SamplingTensor<T> grad_offsets, SamplingTensor<T> grad_mask, void* workspace,
                  void* stream) const;

 private:
  RoIPoolGeometry geometry_;
  bool deterministic_;
  std::string error_;
  int64_t units_per_block_, blocks_, shared_bytes_;
  int64_t images_per_step_, boxes_per_step_;
  int64_t grad_inputs_at_, partials_at_;  // in bytes
  int64_t workspace_bytes_ = 0;
};

// Converts boxes to the type in which positions are computed.
std::string ConvertBoxes(const float* from, int64_t size, double* to, void* stream);
std::string ConvertBoxes(const double* from, int64_t size, float* to, void* stream);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_PLAN_H_
