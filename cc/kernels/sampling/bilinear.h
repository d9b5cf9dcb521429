// Bilinear sampling at one position: the rule of docs/conventions.md, for the host and for CUDA
// devices. sampling/bilinear_simd.inc is the same rule for a vector of positions, and
// tests/native/sampling_rules.cc compares the two.
#ifndef TF_DEFORMABLE_CC_KERNELS_SAMPLING_BILINEAR_H_
#define TF_DEFORMABLE_CC_KERNELS_SAMPLING_BILINEAR_H_

#include <cstdint>

#include "kernels/base/host_device.h"

namespace tf_deformable {

#if !defined(__CUDA_ARCH__)
// A number, or a vector of them, as it is rounded: the compiler cannot fuse what made it with what
// uses it.
template <typename V>
[[gnu::always_inline]] inline V Rounded(V value) {
#if defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  asm("" : "+m"(value));
#endif
  return value;
}
#endif

// The position, in pixels, of a location that is a part of the map, of which 0 and 1 are the outer
// edges. The product is rounded before the difference, on every processor: pixels' centres are
// where the derivative jumps, and one rounding less would put some of them before it.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE A PositionOfLocation(A location, A size) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == sizeof(double)) return __dmul_rn(location, size) - A(0.5);
  return __fmul_rn(location, size) - A(0.5);
#else
  return Rounded(location * size) - A(0.5);
#endif
}

// The cell that a position lies in. Its corners are (y0,x0), (y0,x0+1), (y0+1,x0), (y0+1,x0+1).
template <typename A, typename Pixel = int32_t>
struct SamplingPoint {
  A fraction_y, fraction_x;  // within the cell [y0, y0+1] x [x0, x0+1]; NaN where the position is
  Pixel pixel;               // y0 * row + x0; it may be off the map
  uint32_t corners;  // bit j: corner j is on the map; the others are not read and count as 0
};

// A position counts while -1 <= y < height and -1 <= x < width: at -1 the value is 0, but its
// derivative is not. Positions off the map, infinite ones among them, have no corner and fractions
// of 0; so have NaN positions, but their fractions are NaN. `row`: pixels from one row of the map
// to the next.
template <typename A, typename Pixel>
TF_DEFORMABLE_HOST_DEVICE SamplingPoint<A, Pixel> MakeSamplingPoint(A y, A x, int32_t height,
                                                                    int32_t width, Pixel row) {
  const bool inside = y >= -1 && y < static_cast<A>(height) && x >= -1 && x < static_cast<A>(width);
  if (!inside) {
    const A nothing = (y != y || x != x) ? y + x : A{0};
    return {nothing, nothing, Pixel{0}, 0};
  }
  int32_t y0 = static_cast<int32_t>(y);
  int32_t x0 = static_cast<int32_t>(x);
  y0 -= y < static_cast<A>(y0);  // rounds towards minus infinity
  x0 -= x < static_cast<A>(x0);
  const uint32_t rows = (y0 >= 0 ? 0x3u : 0u) | (y0 + 1 < height ? 0xcu : 0u);
  const uint32_t columns = (x0 >= 0 ? 0x5u : 0u) | (x0 + 1 < width ? 0xau : 0u);
  return {y - static_cast<A>(y0), x - static_cast<A>(x0), y0 * row + x0, rows & columns};
}

// The bilinear weights of the corners times the mask.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE void CornerWeights(A fraction_y, A fraction_x, A mask, A (&weights)[4]) {
  weights[0] = (1 - fraction_y) * (1 - fraction_x) * mask;
  weights[1] = (1 - fraction_y) * fraction_x * mask;
  weights[2] = fraction_y * (1 - fraction_x) * mask;
  weights[3] = fraction_y * fraction_x * mask;
}

// The bytes of a sample in the vector form, whole vectors of which are a SampleVector
// (bilinear_simd.inc).
template <typename A>
inline constexpr int64_t kSampleBytes = 4 * sizeof(int64_t) + 7 * sizeof(A);

template <typename A>
struct PointGradients {
  A y, x, mask;
};

// From d0 to d3, the products of the sample's gradient with the corners. At an integer position
// they are those of the cell [floor, floor+1].
template <typename A>
TF_DEFORMABLE_HOST_DEVICE PointGradients<A> MakePointGradients(A fraction_y, A fraction_x, A mask,
                                                               A d0, A d1, A d2, A d3) {
  const A fy = fraction_y, fx = fraction_x;
  return {mask * ((d2 - d0) * (1 - fx) + (d3 - d1) * fx),
          mask * ((d1 - d0) * (1 - fy) + (d3 - d2) * fy),
          (d0 * (1 - fx) + d1 * fx) * (1 - fy) + (d2 * (1 - fx) + d3 * fx) * fy};
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_SAMPLING_BILINEAR_H_
