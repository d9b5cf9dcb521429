// Runs of neighbouring elements: loads, stores and additions of up to 16 bytes.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_ELEMENTS_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_ELEMENTS_H_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/primitives.h"
#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable {
namespace cuda {

// 16 bytes as elements of T.
template <typename T>
struct alignas(16) Elements {
  T values[16 / sizeof(T)];

  Elements() = default;
  TF_DEFORMABLE_DEVICE explicit Elements(const Vector16& v) {
    __builtin_memcpy(values, v.words, sizeof(v.words));
  }
  TF_DEFORMABLE_DEVICE Vector16 ToVector() const {
    Vector16 v;
    __builtin_memcpy(v.words, values, sizeof(v.words));
    return v;
  }
};

template <typename A>
TF_DEFORMABLE_DEVICE A NotANumber() {
  return static_cast<A>(BitsToFloat(0x7fc00000));
}

template <typename E>
TF_DEFORMABLE_DEVICE ComputeType<std::remove_const_t<E>> LoadSampling(const SamplingTensor<E>& from,
                                                                      int64_t i) {
  if constexpr (SamplingTensor<E>::kAlwaysWide) {
    return from.wide[i];
  } else {
    return from.wide != nullptr ? from.wide[i] : ToCompute(from.narrow[i]);
  }
}
template <typename T>
TF_DEFORMABLE_DEVICE void StoreSampling(const SamplingTensor<T>& to, int64_t i,
                                        ComputeType<T> value) {
  if constexpr (SamplingTensor<T>::kAlwaysWide) {
    to.wide[i] = value;
  } else if (to.wide != nullptr) {
    to.wide[i] = value;
  } else {
    to.narrow[i] = FromCompute<T>(value);
  }
}

// kLanes neighbours, widened: 1, or aligned runs of 8 or 16 bytes, or of several 16 bytes.
template <typename T, int kLanes>
TF_DEFORMABLE_DEVICE void LoadRun(const T* from, ComputeType<T> (&values)[kLanes]) {
  constexpr int kBytes = kLanes * sizeof(T), kVector = 16 / sizeof(T);
  if constexpr (kLanes == 1) {
    values[0] = ToCompute(from[0]);
  } else if constexpr (kBytes == 8) {
    const uint2 v = LoadGlobal8(from);
    T run[kLanes];
    __builtin_memcpy(run, &v, sizeof(run));
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = ToCompute(run[i]);
  } else {
    static_assert(kBytes % 16 == 0, "whole vectors");
#pragma unroll
    for (int i = 0; i < kLanes; i += kVector) {
      const Elements<T> v(LoadGlobal16(from + i));
#pragma unroll
      for (int k = 0; k < kVector; ++k) values[i + k] = ToCompute(v.values[k]);
    }
  }
}

// The reverse, rounded; runs are aligned.
template <typename T, int kLanes>
TF_DEFORMABLE_DEVICE void StoreElements(const ComputeType<T> (&values)[kLanes], T* to) {
  struct alignas(kLanes * sizeof(T)) Run {
    T values[kLanes];
  } run;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) run.values[k] = FromCompute<T>(values[k]);
  *reinterpret_cast<Run*>(to) = run;
}

// Adds a run to global memory; four floats are aligned to 16 bytes.
template <typename A, int kLanes>
TF_DEFORMABLE_DEVICE void AddRun(A* to, const A (&values)[kLanes]) {
  if constexpr (std::is_same_v<A, float> && kLanes == 4) {
    AtomicAdd4(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) AtomicAdd(to + i, values[i]);
  }
}

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_ELEMENTS_H_
