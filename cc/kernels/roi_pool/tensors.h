// The tensors of RoI pooling, for the kernels of all devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_TENSORS_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_TENSORS_H_

#include <cstdint>

#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable {

// Boxes are handed over in the type in which positions are computed. Optional tensors may be null.
template <typename T>
struct RoIPoolTensors {
  using A = ComputeType<T>;
  const T* inputs;
  const A* boxes;
  const int32_t* box_indices;
  SamplingTensor<const T> offsets;
  SamplingTensor<const T> mask;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_TENSORS_H_
