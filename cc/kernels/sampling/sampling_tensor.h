// What says where to sample and how strongly: offsets and masks, and the gradients for them.
#ifndef TF_DEFORMABLE_CC_KERNELS_SAMPLING_SAMPLING_TENSOR_H_
#define TF_DEFORMABLE_CC_KERNELS_SAMPLING_SAMPLING_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/base/float_types.h"
#include "kernels/base/host_device.h"

namespace tf_deformable {

// A tensor of offsets or a mask beside features of type T, E being T or const T. Its elements are
// features' T or, since 16 bits round offsets of some ten pixels to quarters of a pixel, the type
// in which positions are computed. Without a tensor both pointers are null.
template <typename E>
struct SamplingTensor {
  using T = std::remove_const_t<E>;
  using Wide = std::conditional_t<std::is_const_v<E>, const ComputeType<T>, ComputeType<T>>;
  static constexpr bool kAlwaysWide = std::is_same_v<E, Wide>;

  E* narrow = nullptr;  // never used if kAlwaysWide
  Wide* wide = nullptr;

  SamplingTensor() = default;
  TF_DEFORMABLE_HOST_DEVICE SamplingTensor(std::nullptr_t) {}
  template <typename P, typename = std::enable_if_t<std::is_convertible_v<P*, E*> ||
                                                    std::is_convertible_v<P*, Wide*>>>
  TF_DEFORMABLE_HOST_DEVICE SamplingTensor(P* data) {
    if constexpr (std::is_convertible_v<P*, Wide*>) {
      wide = data;
    } else {
      narrow = data;
    }
  }

  TF_DEFORMABLE_HOST_DEVICE explicit operator bool() const {
    return wide != nullptr || narrow != nullptr;
  }
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_SAMPLING_SAMPLING_TENSOR_H_
