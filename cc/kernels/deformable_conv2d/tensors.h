// The tensors of the deformable convolution, for the kernels of all devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_

#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable::deformable_conv2d {

template <typename T>
struct ForwardTensors {
  const T* inputs;                  // [N, H, W, C]
  const T* filters;                 // [kh, kw, C/groups, F]
  SamplingTensor<const T> offsets;  // [N, Ho, Wo, G, kh, kw, 2]: dy, dx
  SamplingTensor<const T> mask;     // [N, Ho, Wo, G, kh, kw], or null
  const T* bias;                    // [F], or null
  T* output;                        // [N, Ho, Wo, F]
};

template <typename T>
struct BackwardTensors {
  const T* inputs;                  // [N, H, W, C]
  const T* filters;                 // [kh, kw, C/groups, F]
  SamplingTensor<const T> offsets;  // [N, Ho, Wo, G, kh, kw, 2]: dy, dx
  SamplingTensor<const T> mask;     // [N, Ho, Wo, G, kh, kw], or null
  const T* grad_output;             // [N, Ho, Wo, F]
  T* grad_inputs;                   // [N, H, W, C]
  T* grad_filters;                  // [kh, kw, C/groups, F]
  SamplingTensor<T> grad_offsets;   // [N, Ho, Wo, G, kh, kw, 2]: dy, dx
  SamplingTensor<T> grad_mask;      // [N, Ho, Wo, G, kh, kw]; null without a mask
};

}  // namespace tf_deformable::deformable_conv2d

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_
