// Where one (output pixel, tap, offset group) samples: the arithmetic of docs/conventions.md, for
// the host and for CUDA devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_SAMPLING_BILINEAR_H_
#define TF_DEFORMABLE_CC_KERNELS_SAMPLING_BILINEAR_H_

#include <cstdint>

#include "kernels/base/host_device.h"

namespace tf_deformable {

// Corners are (y0,x0), (y0,x0+1), (y0+1,x0), (y0+1,x0+1).
template <typename A>
struct SamplingPoint {
  A fraction_y, fraction_x;  // within the cell [y0, y0+1] x [x0, x0+1]; NaN where the position is
  A mask;
  int32_t pixel;     // y0 * width + x0 of the image; may be off the map
  uint32_t corners;  // bit j: corner j is on the map; the others are not read and count as 0
};

// A position counts while -1 <= y < height and -1 <= x < width: at -1 the value is 0, but not its
// derivative. Off the map, infinite or NaN: no corner, and only NaN leaves a trace.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE SamplingPoint<A> MakeSamplingPoint(A y, A x, A mask, int32_t height,
                                                             int32_t width) {
  const bool inside = y >= -1 && y < static_cast<A>(height) && x >= -1 && x < static_cast<A>(width);
  if (!inside) {
    const A nothing = (y != y || x != x) ? y + x : A{0};
    return {nothing, nothing, mask, 0, 0};
  }
  int32_t y0 = static_cast<int32_t>(y);
  int32_t x0 = static_cast<int32_t>(x);
  y0 -= y < static_cast<A>(y0);  // rounds towards minus infinity
  x0 -= x < static_cast<A>(x0);
  const uint32_t rows = (y0 >= 0 ? 0x3u : 0u) | (y0 + 1 < height ? 0xcu : 0u);
  const uint32_t columns = (x0 >= 0 ? 0x5u : 0u) | (x0 + 1 < width ? 0xau : 0u);
  return {y - static_cast<A>(y0), x - static_cast<A>(x0), mask, y0 * width + x0, rows & columns};
}

// Pixel of corner j of the cell whose first one is `pixel`.
TF_DEFORMABLE_HOST_DEVICE int32_t CornerPixel(int32_t pixel, int j, int32_t width) {
  return pixel + (j & 1) + (j >> 1) * width;
}

// Bilinear weights times the mask.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE void CornerWeights(const SamplingPoint<A>& point, A (&weights)[4]) {
  const A fy = point.fraction_y, fx = point.fraction_x;
  weights[0] = (1 - fy) * (1 - fx) * point.mask;
  weights[1] = (1 - fy) * fx * point.mask;
  weights[2] = fy * (1 - fx) * point.mask;
  weights[3] = fy * fx * point.mask;
}

// Gradients for (dy, dx, mask) from dots[j], the product of the sample's gradient with corner j.
// At an integer position they are those of the cell [floor, floor+1].
template <typename A>
TF_DEFORMABLE_HOST_DEVICE void PointGradients(const SamplingPoint<A>& point, const A (&dots)[4],
                                              A (&gradients)[3]) {
  const A fy = point.fraction_y, fx = point.fraction_x;
  gradients[0] = point.mask * ((dots[2] - dots[0]) * (1 - fx) + (dots[3] - dots[1]) * fx);
  gradients[1] = point.mask * ((dots[1] - dots[0]) * (1 - fy) + (dots[3] - dots[2]) * fy);
  gradients[2] =
      (dots[0] * (1 - fx) + dots[1] * fx) * (1 - fy) + (dots[2] * (1 - fx) + dots[3] * fx) * fy;
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_SAMPLING_BILINEAR_H_
