// CUDA kernels over the elements of a tensor, which all operators share.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_REDUCE_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_REDUCE_H_

#include <cstdint>

#include "kernels/base/integers.h"
#include "kernels/cuda/primitives.h"

namespace tf_deformable {
namespace cuda {

inline constexpr int kReduceThreads = 256;  // one to each element

// to[i] = sum over s of from[s, i], in their order.
template <typename T>
TF_DEFORMABLE_KERNEL(kReduceThreads, 1)
void SumKernel(const ComputeType<T>* from, int64_t size, int32_t summands, T* to) {
  const int64_t i = BlockIndex() * kReduceThreads + ThreadIndex();
  if (i >= size) return;
  ComputeType<T> sum = from[i];
  for (int32_t s = 1; s < summands; ++s) sum += from[s * size + i];
  to[i] = FromCompute<T>(sum);
}

// Rounds to TF32.
template <typename T>
TF_DEFORMABLE_KERNEL(kReduceThreads, 1)
void RoundKernel(const T* from, int64_t size, T* to) {
  const int64_t i = BlockIndex() * kReduceThreads + ThreadIndex();
  if (i < size) to[i] = BitsToFloat(ToTensorFloat32(from[i]));
}

template <typename From, typename To>
TF_DEFORMABLE_KERNEL(kReduceThreads, 1)
void ConvertKernel(const From* from, int64_t size, To* to) {
  const int64_t i = BlockIndex() * kReduceThreads + ThreadIndex();
  if (i < size) to[i] = static_cast<To>(from[i]);
}

// Launches one of these.
template <typename... Parameters>
[[nodiscard]] Status LaunchForElements(const char* op, void (*kernel)(Parameters...), int64_t size,
                                       void* stream, const Parameters&... parameters) {
  return Launch(op, kernel, CeilDiv(size, kReduceThreads), kReduceThreads, 0, stream,
                parameters...);
}

// Rounds the sums to the results, where these do not hold them.
template <typename T>
[[nodiscard]] Status RoundSums(const char* op, const ComputeType<T>* sums, int64_t size, T* results,
                               void* stream) {
  if constexpr (kHasWiderSums<T>) {
    return LaunchForElements(op, SumKernel<T>, size, stream, sums, size, int32_t{1}, results);
  } else {
    return Status();
  }
}

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_REDUCE_H_
