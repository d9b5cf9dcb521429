// Element types of tensors, free of TensorFlow headers.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_FLOAT_TYPES_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_FLOAT_TYPES_H_

#include <cstdint>
#include <type_traits>

namespace tf_deformable {

// Storage only: the kernels widen both to float as they load and round (to nearest even) as they
// store. Bit-compatible with Eigen::half and Eigen::bfloat16.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which positions, weights and sums of a tensor of T are computed.
template <typename T>
struct ComputeTypeOf {
  using type = float;
};
template <>
struct ComputeTypeOf<double> {
  using type = double;
};
template <typename T>
using ComputeType = typename ComputeTypeOf<T>::type;

// Whether sums of T are held in a wider type, and rounded once, when nothing more is added.
template <typename T>
inline constexpr bool kHasWiderSums = !std::is_same_v<T, ComputeType<T>>;

// Where the sums of results are held: in the results, unless they are wider.
template <typename T>
ComputeType<T>* SumsOf(T* results, void* wider_sums) {
  if constexpr (kHasWiderSums<T>) {
    return static_cast<ComputeType<T>*>(wider_sums);
  } else {
    return results;
  }
}

// Every integer up to this one is a float: along so many pixels, positions of pixels are exact.
inline constexpr int64_t kExactAsFloat = 1 << 24;

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_FLOAT_TYPES_H_
