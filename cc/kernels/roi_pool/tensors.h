// The tensors of RoI pooling, for the kernels of all devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_TENSORS_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_TENSORS_H_

#include <cstdint>

#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable::roi_pool {

// What both passes read. Boxes are handed over in the type in which positions are computed.
template <typename T>
struct InputTensors {
  const T* inputs;                  // [N, H, W, k*k*D]
  const ComputeType<T>* boxes;      // [R, 4]: y1, x1, y2, x2
  const int32_t* box_indices;       // [R]: the image, or -1
  SamplingTensor<const T> offsets;  // [R, part_h, part_w, classes, 2]: dy, dx; or null
  SamplingTensor<const T> mask;     // [R, ph, pw], or null
};

template <typename T>
struct ForwardTensors : InputTensors<T> {
  T* output;  // [R, ph, pw, D]
};

template <typename T>
struct BackwardTensors : InputTensors<T> {
  const T* grad_output;            // [R, ph, pw, D]
  T* grad_inputs;                  // [N, H, W, k*k*D]
  SamplingTensor<T> grad_offsets;  // [R, part_h, part_w, classes, 2]: dy, dx; null without offsets
  SamplingTensor<T> grad_mask;     // [R, ph, pw]; null without a mask
};

}  // namespace tf_deformable::roi_pool

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_TENSORS_H_
