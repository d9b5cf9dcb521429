// The tensors of the deformable convolution, for the kernels of all devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_

#include "kernels/base/float_types.h"
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

// The branch: the convolution that predicts offsets and mask, over the same map. All but the map
// are of the type in which positions are computed. D = G * kh * kw * 2, or * 3 with a mask; the
// filters of the offsets come first.
template <typename T>
struct BranchTensors {
  using A = ComputeType<T>;
  const T* inputs;   // [N, H, W, C]
  const A* filters;  // [kh, kw, C, D]
  const A* bias;     // [D]
  A largest_mask;    // mask = largest_mask * sigmoid(the convolution)
  A* offsets;        // [N, Ho, Wo, G, kh, kw, 2]: dy, dx
  A* mask;           // [N, Ho, Wo, G, kh, kw], or null
};

template <typename T>
struct BranchGradientTensors {
  using A = ComputeType<T>;
  const T* inputs;   // [N, H, W, C]
  const A* filters;  // [kh, kw, C, D]
  const A* mask;     // [N, Ho, Wo, G, kh, kw], or null
  A largest_mask;
  const A* grad_offsets;  // [N, Ho, Wo, G, kh, kw, 2]: dy, dx
  const A* grad_mask;     // [N, Ho, Wo, G, kh, kw]; null without a mask
  T* grad_inputs;         // [N, H, W, C]
  A* grad_filters;        // [kh, kw, C, D]
  A* grad_bias;           // [D]
};

}  // namespace tf_deformable::deformable_conv2d

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_TENSORS_H_
