// Which samples a bin of a box has, and which rows and columns of the map they read: the rule of
// docs/conventions.md for one axis at a time, for the host and for CUDA devices.
//
// The samples of a bin are a grid, and whether one counts, where it is clamped and how it is
// interpolated is decided for each axis alone. So the sum over samples and corners is a sum over
// the map's rows and columns that the bin touches, its lines, of (row weight) * (column weight) *
// x: a bin of 4x4 samples reads its few pixels once each instead of 64 times. The gradients use the
// same weights, and for the offsets their slopes.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_BINS_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_BINS_H_

#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/base/integers.h"
#include "kernels/roi_pool/geometry.h"

#if defined(__CUDACC__)
#include <cmath>
#endif

namespace tf_deformable::roi_pool {

// --- Numbers -------------------------------------------------------------------------------------

template <typename A>
TF_DEFORMABLE_HOST_DEVICE bool IsFinite(A v) {
  return v - v == 0;
}

// A builtin is no inline function of the standard library (see cpu/simd.inc), but nvcc lacks it.
#if defined(__CUDACC__)
TF_DEFORMABLE_HOST_DEVICE float Floor(float v) { return floorf(v); }
TF_DEFORMABLE_HOST_DEVICE double Floor(double v) { return floor(v); }
#else
TF_DEFORMABLE_HOST_DEVICE float Floor(float v) { return __builtin_floorf(v); }
TF_DEFORMABLE_HOST_DEVICE double Floor(double v) { return __builtin_floor(v); }
#endif

// Rounds halves away from zero, as C's round(), whatever the rounding mode.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE A RoundHalfAway(A v) {
  const A whole = v < 0 ? -Floor(-v) : Floor(v);  // towards zero
  const A rest = v - whole;
  return rest >= A(0.5) ? whole + 1 : rest <= A(-0.5) ? whole - 1 : whole;
}

// The last of `limit` pixels. Where A rounds their number up, the last one that A can name.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE A LastPixel(int64_t limit) {
  int64_t last = limit - 1;
  for (int64_t bit = 1; static_cast<int64_t>(static_cast<A>(last)) > last; bit *= 2) last &= ~bit;
  return static_cast<A>(last);
}

// --- Boxes ---------------------------------------------------------------------------------------

// `corners`: y1, x1, y2, x2.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE bool IsFiniteBox(const A* corners) {
  return IsFinite(corners[0]) && IsFinite(corners[1]) && IsFinite(corners[2]) &&
         IsFinite(corners[3]);
}

// One axis of a box, in pixels of the map.
template <typename A>
struct BoxAxis {
  A start, size, bin;
};

template <typename A>
TF_DEFORMABLE_HOST_DEVICE BoxAxis<A> MakeBoxAxis(const Geometry& g, A low, A high, int64_t bins) {
  const A scale = g.spatial_scale;
  BoxAxis<A> axis;
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

// By how many pixels an offset of 1 moves the bins of a box. It is finite, so that an offset of 0
// moves nothing, and no gradient of 0 becomes NaN, for a box that is larger than A can say.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE A PixelsPerOffset(const Geometry& g, const BoxAxis<A>& box) {
  const A largest = sizeof(A) == sizeof(float) ? A(3.402823466e+38f) : A(1.7976931348623157e+308);
  const A pixels = static_cast<A>(g.gamma) * box.size;
  return pixels > largest ? largest : pixels < -largest ? -largest : pixels;
}

// --- Bins ----------------------------------------------------------------------------------------

// Bin (i, j) is moved by the offsets of part cell (i*part_h/ph, j*part_w/pw).
TF_DEFORMABLE_HOST_DEVICE int64_t PartOfBin(const Geometry& g, int64_t i, int64_t j) {
  return i * g.part_height / g.pooled_height * g.part_width + j * g.part_width / g.pooled_width;
}

// Where the offsets (dy, dx) of a bin are, for one class.
TF_DEFORMABLE_HOST_DEVICE int64_t OffsetsOfBin(const Geometry& g, int64_t box, int64_t i, int64_t j,
                                               int64_t cls) {
  return box * g.offsets_per_box() + (PartOfBin(g, i, j) * g.classes + cls) * 2;
}

// Bin (i, j) reads map (i*k/ph, j*k/pw).
TF_DEFORMABLE_HOST_DEVICE int64_t MapOfBin(const Geometry& g, int64_t i, int64_t j) {
  return i * g.group_size / g.pooled_height * g.group_size + j * g.group_size / g.pooled_width;
}

// The first bin i with i*cells/bins >= cell: the bins of a cell (a part cell, a map) are those from
// its first one to that of the next cell.
TF_DEFORMABLE_HOST_DEVICE int64_t FirstBinOfCell(int64_t cell, int64_t bins, int64_t cells) {
  return CeilDiv(cell * bins, cells);
}

// The factor of a bin's sum: 1 / n, 0 without samples; NaN where the offset is.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE A BinScale(A samples_y, A samples_x, A dy, A dx) {
  if (dy != dy || dx != dx) return dy + dx;
  const A samples = samples_y * samples_x;
  return samples >= 1 ? 1 / samples : A{0};
}

// The samples of one bin along one axis, in increasing order of their positions. Those before
// `first` and from `last` on are far off the map.
template <typename A>
struct BinSamples {
  A base, spacing;
  A count;  // aligned: all samples; else 0, and those that count have to be counted
  int64_t first, last;
  int64_t limit;  // pixels of the map along this axis
  A highest;      // the last position that counts
  A end;          // the last pixel
  bool aligned;

  // False: the sample does not count. The position is on the map, moved there if necessary.
  TF_DEFORMABLE_HOST_DEVICE bool Position(int64_t index, A* position) const {
    return aligned ? PositionAs<true>(index, position) : PositionAs<false>(index, position);
  }
  template <bool kAligned>
  TF_DEFORMABLE_HOST_DEVICE bool PositionAs(int64_t index, A* position) const {
    A p;
    if (kAligned) {
      const int64_t s = spacing < 0 ? static_cast<int64_t>(count) - 1 - index : index;
      p = base + (s + A(0.5)) * spacing;
    } else {
      p = base + index * spacing;
    }
    if (!(p >= (kAligned ? A{-1} : A(-0.5)) && p <= highest)) return false;
    *position = p < 0 ? A{0} : p > end ? end : p;
    return true;
  }
};

// Of bin `index` of a box, moved by `shift` pixels.
template <typename A>
TF_DEFORMABLE_HOST_DEVICE BinSamples<A> MakeBinSamples(const Geometry& g, const BoxAxis<A>& box,
                                                       int64_t index, A shift, int64_t limit) {
  BinSamples<A> samples;
  samples.base = box.start + index * box.bin + shift;
  samples.limit = limit;
  samples.highest = g.aligned ? static_cast<A>(limit) : limit - A(0.5);
  samples.end = LastPixel<A>(limit);
  samples.aligned = g.aligned;
  samples.first = samples.last = 0;
  if (!g.aligned) {
    samples.count = 0;
    samples.spacing = box.bin / g.samples_per_bin;
    samples.last = g.samples_per_bin;
    return samples;
  }
  samples.count = g.samples_per_bin > 0 ? static_cast<A>(g.samples_per_bin) : -Floor(-box.bin);
  samples.spacing = 0;
  // A bin of more pixels than this weighs each with nothing.
  if (!(samples.count >= 1 && samples.count <= A(1 << 30)) || limit == 0) return samples;
  const int64_t all = static_cast<int64_t>(samples.count);
  samples.spacing = box.bin / samples.count;
  samples.last = all;
  // Of a large bin only the samples near the map are visited.
  const A width = samples.spacing < 0 ? -samples.spacing : samples.spacing;
  if (width > 0) {
    const A low = samples.spacing > 0 ? samples.base : samples.base + all * samples.spacing;
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

// --- Lines ---------------------------------------------------------------------------------------

// One row (or column) of the map that a bin reads along one axis, over all of the bin's samples.
template <typename A, typename Index = int64_t>
struct AxisLine {
  Index at;
  A weight;  // sum of the samples' interpolation weights
  A slope;   // its derivative for the position of the bin
};

// So many lines an axis has at most: a sample touches two pixels, and there are only so many.
TF_DEFORMABLE_HOST_DEVICE int64_t AxisCapacity(const Geometry& g) {
  const int64_t longest = Max(g.height, g.width);
  const int64_t touched = g.samples_per_bin > 0 ? 2 * g.samples_per_bin : longest;
  return Max(Min(touched, longest), 1);
}

// The two pixels that a position lies between; one, if it is one of them: then the slope is 0.
template <typename A, typename Index>
struct PixelPair {
  Index low;
  A fraction;
};

// Of a position that lies between the first and the last pixel.
template <typename Index, typename A>
TF_DEFORMABLE_HOST_DEVICE PixelPair<A, Index> MakePixelPair(A position) {
  const Index low = static_cast<Index>(position);
  return {low, position - static_cast<A>(low)};
}

// The lines of one bin along one axis.
template <typename A, typename Index = int64_t>
struct AxisLines {
  AxisLine<A, Index>* lines;
  Index size;
  A samples;  // those that count (aligned: all): the axis' factor of n

  // Positions come in increasing order, so a line that exists already is one of the last two.
  TF_DEFORMABLE_HOST_DEVICE void Add(Index at, A weight, A slope) {
    AxisLine<A, Index>* line = lines + size;
    if (size > 0 && line[-1].at == at) {
      --line;
    } else if (size > 1 && line[-2].at == at) {
      line -= 2;
    } else {
      *line = {at, 0, 0};
      ++size;
    }
    line->weight += weight;
    line->slope += slope;
  }

  // Fills the lines from the samples of the bin.
  TF_DEFORMABLE_HOST_DEVICE void Collect(const BinSamples<A>& from) {
    if (from.aligned) {
      CollectAs<true>(from);
    } else {
      CollectAs<false>(from);
    }
  }

 private:
  template <bool kAligned>
  TF_DEFORMABLE_HOST_DEVICE void CollectAs(const BinSamples<A>& from) {
    size = 0;
    samples = from.count;
    for (int64_t s = from.first; s < from.last; ++s) {
      A position;
      if (!from.template PositionAs<kAligned>(s, &position)) continue;
      if (!kAligned) samples += 1;
      if (from.limit == 0) continue;
      const PixelPair<A, Index> pair = MakePixelPair<Index>(position);
      if (pair.fraction == 0) {
        Add(pair.low, 1, 0);
      } else {
        Add(pair.low, 1 - pair.fraction, -1);
        Add(pair.low + 1, pair.fraction, 1);
      }
    }
  }
};

}  // namespace tf_deformable::roi_pool

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_BINS_H_
