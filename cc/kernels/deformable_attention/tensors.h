// The tensors of deformable attention, for the kernels of all devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_TENSORS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_TENSORS_H_

#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable::deformable_attention {

// What both passes read.
template <typename T>
struct InputTensors {
  const T* value;                     // [N, S, heads, D]
  SamplingTensor<const T> locations;  // [N, Q, heads, levels, points, 2]: y, x
  SamplingTensor<const T> weights;    // [N, Q, heads, levels, points]
};

template <typename T>
struct ForwardTensors : InputTensors<T> {
  T* output;  // [N, Q, heads, D]
};

template <typename T>
struct BackwardTensors : InputTensors<T> {
  const T* grad_output;              // [N, Q, heads, D]
  T* grad_value;                     // [N, S, heads, D]
  SamplingTensor<T> grad_locations;  // [N, Q, heads, levels, points, 2]: y, x
  SamplingTensor<T> grad_weights;    // [N, Q, heads, levels, points]
};

}  // namespace tf_deformable::deformable_attention

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_TENSORS_H_
