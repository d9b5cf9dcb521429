// Arithmetic of sizes that drivers and kernels share.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_INTEGERS_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_INTEGERS_H_

#include <cstdint>

#include "kernels/base/host_device.h"

namespace tf_deformable {

// These are of 32 bits if both numbers are: a CUDA device divides them in a fifth of the time.
template <typename A, typename B>
TF_DEFORMABLE_HOST_DEVICE constexpr auto CeilDiv(A a, B b) {
  return (a + b - 1) / b;
}
template <typename A, typename B>
TF_DEFORMABLE_HOST_DEVICE constexpr auto RoundUp(A a, B b) {
  return CeilDiv(a, b) * b;
}

// std::min and std::max are inline functions of the standard library: see cpu/simd.inc.
TF_DEFORMABLE_HOST_DEVICE constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
TF_DEFORMABLE_HOST_DEVICE constexpr int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
TF_DEFORMABLE_HOST_DEVICE constexpr int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_INTEGERS_H_
