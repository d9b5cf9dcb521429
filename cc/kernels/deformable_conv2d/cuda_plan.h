// The deformable convolution and its gradients on a CUDA device, the current one.
//
// Products run on the tensor cores: of 16-bit types and, if the options say so, of float as TF32.
// There sampled values are rounded before the product, to the type or to TF32; all sums are at
// least float. No header of CUDA is included, so that any compiler can call this.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PLAN_H_

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/options.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"

namespace tf_deformable::deformable_conv2d::cuda {

// Made for one call: plan, allocate, Run. All tensors and the workspace (aligned to 256 bytes) are
// in the memory of the device; `stream` is a cudaStream_t. Run returns when the work is in the
// stream.
template <typename T>
class ForwardPlan {
 public:
  ForwardPlan(const Geometry& geometry, const CudaOptions& options)
      : geometry_(geometry), options_(options) {}
  int64_t workspace_bytes() const { return 0; }
  [[nodiscard]] Status Run(const ForwardTensors<T>& tensors, void* workspace, void* stream) const;

 private:
  Geometry geometry_;
  CudaOptions options_;
};

// The workspace is bounded whatever the batch: 48 MiB, or what one image needs, if that is more
// (16-bit gradients of the inputs are added up as float, some images at a time).
template <typename T>
class BackwardPlan {
 public:
  BackwardPlan(const Geometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  [[nodiscard]] Status Run(const BackwardTensors<T>& tensors, void* workspace, void* stream) const;

  // The two parts of Run: the gradients of inputs, offsets and mask, and that of the filters.
  [[nodiscard]] Status RunInputs(const BackwardTensors<T>& tensors, void* workspace,
                                 void* stream) const;
  [[nodiscard]] Status RunFilters(const BackwardTensors<T>& tensors, void* workspace,
                                  void* stream) const;

 private:
  Geometry geometry_;
  CudaOptions options_;
  Status status_;  // of planning: Run returns it, if it is an error
  int multiprocessors_ = 0, shared_bytes_ = 0, shared_bytes_for_two_ = 0;
  bool depthwise_;
  // Gradients of inputs, offsets and mask: steps of some images, or of some pixels of one.
  int64_t images_per_step_, pixels_per_step_;
  int32_t chunks_per_range_, ranges_per_segment_, ranges_;
  int64_t partials_at_;  // in bytes, like the next one
  // Gradient of the filters; it reuses the workspace.
  int32_t splits_;
  int64_t workspace_bytes_ = 0;
};

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PLAN_H_
