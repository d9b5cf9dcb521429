// Where the bins of a box sample along one axis, for the host and for CUDA devices.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_BINS_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_BINS_H_

#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/roi_pool/geometry.h"

namespace tf_deformable {

template <typename A>
TF_DEFORMABLE_HOST_DEVICE bool IsFinite(A v) {
  return v - v == 0;
}

TF_DEFORMABLE_HOST_DEVICE float Floor(float v) { return floorf(v); }
TF_DEFORMABLE_HOST_DEVICE double Floor(double v) { return floor(v); }

// Half away from zero, as C's round(), whatever the rounding mode.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE A RoundHalfAway(A v) {
  const A whole = v < 0 ? -Floor(-v) : Floor(v);  // towards zero
  const A rest = v - whole;
  return rest >= A(0.5) ? whole + 1 : rest <= A(-0.5) ? whole - 1 : whole;
}

// One axis of a box, in pixels of the map.
template <typename A>
struct RoIAxis {
  A start, size, bin;
};

template <typename A>
TF_DEFORMABLE_HOST_DEVICE RoIAxis<A> MakeRoIAxis(const RoIPoolGeometry& g, A low, A high,
                                                 int64_t bins) {
  const A scale = g.spatial_scale;
  RoIAxis<A> axis;
  if (g.aligned) {
    axis.start = low * scale - A(0.5);
    axis.size = (high - low) * scale;
  } else {
    axis.start = RoundHalfAway(low) * scale - A(0.5);
    const A end = (RoundHalfAway(high) + 1) * scale - A(0.5);
    axis.size = end - axis.start > A(0.1) ? end - axis.start : A(0.1);
  }
  axis.bin = axis.size / bins;
  return axis;
}

// By how many pixels a normalised offset of 1 moves the bins of a box; finite, so that no gradient
// of 0 becomes NaN for a box that is larger than A can say.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE A RoIShift(const RoIPoolGeometry& g, const RoIAxis<A>& axis) {
  const A largest = sizeof(A) == sizeof(float) ? A(3.402823466e+38f) : A(1.7976931348623157e+308);
  const A shift = static_cast<A>(g.gamma) * axis.size;
  return shift > largest ? largest : shift < -largest ? -largest : shift;
}

// The samples of one bin along one axis, in increasing order of their positions. Those before
// `first` and from `last` on are far off the map.
template <typename A>
struct RoISamples {
  A base, step;
  A count;  // aligned: of all samples; else it is up to who counts those that are kept
  int64_t first, last;
  int64_t limit;  // pixels of the map along this axis
  bool aligned;

  // False: the sample does not count. The position is on the map, moved there if necessary.
  TF_DEFORMABLE_HOST_DEVICE bool Position(int64_t index, A* position) const {
    A p;
    if (aligned) {
      const int64_t s = step < 0 ? static_cast<int64_t>(count) - 1 - index : index;
      p = base + (s + A(0.5)) * step;
      if (!(p >= -1 && p <= limit)) return false;
    } else {
      p = base + index * step;
      if (!(p >= A(-0.5) && p <= limit - A(0.5))) return false;
    }
    const A end = static_cast<A>(limit - 1);
    *position = p < 0 ? A{0} : p > end ? end : p;
    return true;
  }
};

// Of bin `index` of a box, moved by `shift` pixels.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE RoISamples<A> MakeRoISamples(const RoIPoolGeometry& g,
                                                       const RoIAxis<A>& axis, int64_t index,
                                                       A shift, int64_t limit) {
  RoISamples<A> samples;
  samples.base = axis.start + index * axis.bin + shift;
  samples.limit = limit;
  samples.aligned = g.aligned;
  samples.first = samples.last = 0;
  if (!g.aligned) {
    samples.count = 0;
    samples.step = axis.bin / g.samples_per_bin;
    samples.last = g.samples_per_bin;
    return samples;
  }
  samples.count = g.samples_per_bin > 0 ? static_cast<A>(g.samples_per_bin) : -Floor(-axis.bin);
  samples.step = 0;
  // A bin of more pixels than this weighs each with nothing.
  if (!(samples.count >= 1 && samples.count <= A(1 << 30)) || limit == 0) return samples;
  const int64_t all = static_cast<int64_t>(samples.count);
  samples.step = axis.bin / samples.count;
  samples.last = all;
  // Of a large bin only the samples near the map are visited.
  const A width = samples.step < 0 ? -samples.step : samples.step;
  if (width > 0) {
    const A low = samples.step > 0 ? samples.base : samples.base + all * samples.step;
    const A before = (-1 - low) / width - 2, until = (limit - low) / width + 2;
    if (!(before < all && until > 0)) {
      samples.last = 0;
      return samples;
    }
    if (before > 0) samples.first = static_cast<int64_t>(before);
    if (until < all) samples.last = static_cast<int64_t>(until);
  }
  return samples;
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_BINS_H_
