// The tensors of the deformable convolution, for the kernels of all devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_

#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable {

// Shapes as in DeformableConv2DArguments; `mask` and `bias` may be null.
template <typename T>
struct DeformableConv2DForward {
  const T* inputs;
  const T* filters;
  SamplingTensor<const T> offsets;
  SamplingTensor<const T> mask;
  const T* bias;
  T* output;  // [N, Ho, Wo, F]
};

template <typename T>
struct DeformableConv2DBackward {
  const T* inputs;
  const T* filters;
  SamplingTensor<const T> offsets;
  SamplingTensor<const T> mask;
  const T* grad_output;
  T* grad_inputs;
  T* grad_filters;
  SamplingTensor<T> grad_offsets;
  SamplingTensor<T> grad_mask;  // null without a mask
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_
