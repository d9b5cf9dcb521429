// The deformable convolution and its gradients on a CUDA device, the current one.
//
// Products run on the tensor cores: of 16-bit types and, if the options say so, of float as TF32.
// There sampled values are rounded before the product, to the type or to TF32; all sums are at
// least float. No header of CUDA is included, so that any compiler can call this.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PLAN_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PLAN_H_

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/options.h"
#include "kernels/deformable_conv2d/cuda_convolution.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/deformable_conv2d/tensors.h"

namespace tf_deformable::deformable_conv2d::cuda {

// Made for one call: plan, allocate, Run. On Hopper the workspace has the filters once more, as its
// tensor cores read them. All tensors and the workspace (aligned to 256 bytes) are
// in the memory of the device; `stream` is a cudaStream_t. Run returns when the work is in the
// stream.
template <typename T>
class ForwardPlan {
 public:
  ForwardPlan(const Geometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  [[nodiscard]] Status Run(const ForwardTensors<T>& tensors, void* workspace, void* stream) const;

 private:
  Geometry geometry_;
  Convolution convolution_ = {};  // the geometry, if it fits
  CudaOptions options_;
  Status status_;  // of planning: Run returns it, if it is an error
  tf_deformable::cuda::DeviceLimits limits_;
  int32_t warpgroup_columns_ = 0;  // of a tile that warpgroups multiply; 0: they are not used
  int64_t workspace_bytes_ = 0;
};

// How the gradient of the inputs is computed in steps, which bounds its workspace.
struct InputsGradientSteps {
  // Samples are listed for so many images at a time, of which a step has some; or for so many
  // pixels of an image, which are a step.
  int64_t images_per_list, images_per_step, pixels_per_step;  // 0: images are whole
  int64_t pixels_per_list;
  int32_t team;    // threads that gather the channels of a range
  int32_t ranges;  // of an offset group
  // What lies where in the workspace, in bytes from its beginning.
  int64_t sums_at, lists_at, passing_at, partials_at;
  int64_t workspace_bytes;
};

// The workspace is bounded whatever the batch: 64 MiB, or, if that is more, what it takes to list
// the cells of one image (8 bytes to a pixel and offset group).
template <typename T>
class BackwardPlan {
 public:
  BackwardPlan(const Geometry& geometry, const CudaOptions& options);
  int64_t workspace_bytes() const { return workspace_bytes_; }
  [[nodiscard]] Status Run(const BackwardTensors<T>& tensors, void* workspace, void* stream) const;

  // The two halves of Run: the gradients of inputs, offsets and mask, and that of the filters.
  [[nodiscard]] Status RunInputs(const BackwardTensors<T>& tensors, void* workspace,
                                 void* stream) const;
  [[nodiscard]] Status RunFilters(const BackwardTensors<T>& tensors, void* workspace,
                                  void* stream) const;

 private:
  Geometry geometry_;
  Convolution convolution_ = {};  // the geometry, if it fits
  CudaOptions options_;
  Status status_;  // of planning: Run returns it, if it is an error
  tf_deformable::cuda::DeviceLimits limits_;
  bool depthwise_;
  InputsGradientSteps steps_;
  int32_t splits_;  // of the pixels, for the gradient of the filters
  int64_t workspace_bytes_ = 0;
};

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_PLAN_H_
