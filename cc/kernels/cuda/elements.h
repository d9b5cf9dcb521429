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

// 16 bytes as elements of T, widened.
template <typename T>
TF_DEFORMABLE_DEVICE void Widen(const Vector16& from, ComputeType<T> (&values)[16 / sizeof(T)]) {
  if constexpr (std::is_same_v<T, BFloat16>) {  // one instruction each, by whole words
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = BitsToFloat(from.words[i] << 16);
      values[2 * i + 1] = BitsToFloat(from.words[i] & 0xffff0000u);
    }
  } else {
    const Elements<T> elements(from);
#pragma unroll
    for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) {
      values[i] = ToCompute(elements.values[i]);
    }
  }
}

// Rounds four neighbours to TF32; they are aligned to 16 bytes.
TF_DEFORMABLE_DEVICE void RoundInPlace(float* values) {
  Vector16 v = *reinterpret_cast<const Vector16*>(values);
#pragma unroll
  for (int k = 0; k < 4; ++k) v.words[k] = ToTensorFloat32(BitsToFloat(v.words[k]));
  *reinterpret_cast<Vector16*>(values) = v;
}

template <typename A>
TF_DEFORMABLE_DEVICE A NotANumber() {
  return static_cast<A>(BitsToFloat(0x7fc00000));
}

// An offset or a mask, widened; in two halves, so that what is loaded early is not waited for
// before it is used, which converting it would do.
template <typename E>
using RawSampling =
    std::conditional_t<SamplingTensor<E>::kAlwaysWide, std::remove_const_t<E>, uint32_t>;

template <typename E>
TF_DEFORMABLE_DEVICE RawSampling<E> LoadRawSampling(const SamplingTensor<E>& from, int64_t i) {
  if constexpr (SamplingTensor<E>::kAlwaysWide) {
    return from.wide[i];
  } else {
    return from.wide != nullptr ? FloatToBits(from.wide[i]) : from.narrow[i].bits;
  }
}
template <typename E>
TF_DEFORMABLE_DEVICE ComputeType<std::remove_const_t<E>> FromRawSampling(
    const SamplingTensor<E>& from, RawSampling<E> raw) {
  if constexpr (SamplingTensor<E>::kAlwaysWide) {
    return raw;
  } else {
    using T = std::remove_const_t<E>;
    return from.wide != nullptr ? BitsToFloat(raw) : ToCompute(T{static_cast<uint16_t>(raw)});
  }
}

template <typename E>
TF_DEFORMABLE_DEVICE ComputeType<std::remove_const_t<E>> LoadSampling(const SamplingTensor<E>& from,
                                                                      int64_t i) {
  return FromRawSampling(from, LoadRawSampling(from, i));
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

// The reverse, rounded; runs are aligned as far as the widest store goes.
template <typename T, int kLanes>
TF_DEFORMABLE_DEVICE void StoreElements(const ComputeType<T> (&values)[kLanes], T* to) {
  constexpr int kBytes = kLanes * static_cast<int>(sizeof(T)), kMost = 16 / sizeof(T);
  constexpr int kRun = kBytes > 16 ? kMost : kLanes;
  struct alignas(kRun * sizeof(T)) Run {
    T values[kRun];
  };
#pragma unroll
  for (int first = 0; first < kLanes; first += kRun) {
    Run run;
#pragma unroll
    for (int k = 0; k < kRun; ++k) run.values[k] = FromCompute<T>(values[first + k]);
    *reinterpret_cast<Run*>(to + first) = run;
  }
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
