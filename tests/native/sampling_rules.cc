// Checks that the vector forms of the sampling rules are these rules: bilinear_simd.inc that of
// sampling/bilinear.h, and the lanes of RoI pooling those of roi_pool/bins.h; and that 16-bit
// numbers are widened and rounded as IEEE 754 says. Prints which check failed and exits with 1, or
// prints how much was compared; or exits with 77, if the processor lacks what it is compiled for
// (CMakeLists.txt: once for each instruction set).

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernels/base/integers.h"
#include "kernels/roi_pool/bins.h"
#include "kernels/roi_pool/tensors.h"
#include "kernels/sampling/bilinear.h"

namespace tf_deformable::roi_pool {
namespace {

// clang-format off: each is written in terms of those before it.
#include "kernels/cpu/simd.inc"
#include "kernels/sampling/bilinear_simd.inc"
#include "kernels/roi_pool/cpu_bins.inc"
#include "kernels/roi_pool/cpu_lanes.inc"
// clang-format on

int64_t compared = 0;

void Check(bool holds, const char* what, double y, double x, int64_t height, int64_t width) {
  ++compared;
  if (holds) return;
  std::printf("%s differs at (%.17g, %.17g) of a map of %lld x %lld, %d bytes\n", what, y, x,
              static_cast<long long>(height), static_cast<long long>(width), kVectorBytes);
  std::exit(1);
}

// NaN is like NaN, and 0 like -0.
template <typename A>
bool Same(A a, A b) {
  return a == b || (a != a && b != b);
}

template <typename A>
bool Close(A a, A b, A tolerance) {
  return Same(a, b) || std::fabs(a - b) <= tolerance;
}

// --- Bilinear sampling ---------------------------------------------------------------------------

// Positions along an axis of so many pixels: what is odd about each of them.
template <typename A>
std::vector<A> HostilePositions(int64_t limit) {
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  constexpr A kLargest = std::numeric_limits<A>::max();
  const A end = static_cast<A>(limit);
  std::vector<A> positions = {std::numeric_limits<A>::quiet_NaN(),
                              kInfinity,
                              -kInfinity,
                              kLargest,
                              -kLargest,
                              A(1e30),
                              A(-1e30),
                              A(0x1p24),
                              A(0x1p31),
                              A(-0x1p31),
                              A(0x1p32),
                              A(0x1p63),
                              -2,
                              A(-0.0),
                              0,
                              std::numeric_limits<A>::denorm_min(),
                              A(0.25),
                              A(0.5),
                              A(1.75)};
  for (A edge : {A{-1}, A(-0.5), A{1}, end - 2, end - 1, end - A(0.5), end, end + 1}) {
    positions.push_back(edge);
    positions.push_back(std::nextafter(edge, -kInfinity));
    positions.push_back(std::nextafter(edge, kInfinity));
  }
  return positions;
}

template <typename A>
void CheckBilinear(int64_t height, int64_t width, int64_t row) {
  constexpr int kLanes = Simd<A>::kLanes;
  constexpr A kMasks[] = {1, A(0.3), -2, 0, std::numeric_limits<A>::quiet_NaN()};
  const std::vector<A> ys = HostilePositions<A>(height), xs = HostilePositions<A>(width);
  const size_t count = ys.size() * xs.size();
  for (size_t first = 0; first < count; first += kLanes) {
    Vector<A> y = {}, x = {}, mask = {};
    int64_t first_pixel[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const size_t at = (first + i) % count;
      y[i] = ys[at / xs.size()];
      x[i] = xs[at % xs.size()];
      mask[i] = kMasks[at % std::size(kMasks)];
      first_pixel[i] = int64_t{1} << (3 * i);
    }
    SampleVector<A> samples;
    SetSamples<A>(y, x, mask, first_pixel, height, width, row, &samples);
    for (int i = 0; i < kLanes; ++i) {
      const SamplingPoint<A, int64_t> point = MakeSamplingPoint<A>(
          y[i], x[i], static_cast<int32_t>(height), static_cast<int32_t>(width), row);
      const auto check = [&](bool holds, const char* what) {
        Check(holds, what, y[i], x[i], height, width);
      };
      check(Same(samples.fraction_y[i], point.fraction_y), "the fraction of y");
      check(Same(samples.fraction_x[i], point.fraction_x), "the fraction of x");
      A weights[4];
      CornerWeights<A>(point.fraction_y, point.fraction_x, mask[i], weights);
      for (int j = 0; j < 4; ++j) {
        if ((point.corners >> j & 1) != 0) {
          const int64_t pixel = first_pixel[i] + point.pixel + j / 2 * row + j % 2;
          check(samples.corner[j][i] == pixel, "the pixel of a corner");
          check(Same(samples.weight[j][i], weights[j]), "the weight of a corner");
        } else {
          // It counts as 0, and only NaN leaves a trace.
          check(samples.corner[j][i] == -1, "a corner off the map");
          check(Same(samples.weight[j][i] * 0, weights[j] * 0), "the trace of a corner");
        }
      }
    }
  }
}

// Locations as parts of maps, whose sizes differ from lane to lane.
template <typename A>
void CheckLocations() {
  constexpr int kLanes = Simd<A>::kLanes;
  constexpr int64_t kSizes[] = {0, 1, 2, 3, 7, 50, 152, 1000, (1 << 24) + 3};
  const std::vector<A> locations = HostilePositions<A>(1);
  size_t next = 0;
  for (int64_t size : kSizes) {
    for (int64_t pixel = 0; pixel < std::min<int64_t>(size, 200); ++pixel, ++next) {
      Vector<A> y = {}, x = {}, mask = {};
      Integers<A> height = {}, width = {};
      typename PixelIndices<A>::Vector row = {};
      int64_t first_pixel[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        height[i] = static_cast<Integer<A>>(size);
        width[i] = static_cast<Integer<A>>(kSizes[(next + i) % std::size(kSizes)]);
        row[i] = width[i];
        y[i] = (static_cast<A>(pixel) + A(0.5)) / static_cast<A>(size);
        x[i] = locations[(next + i) % locations.size()];
        mask[i] = 1;
        first_pixel[i] = int64_t{7} << i;
      }
      const Vector<A> down = PositionsOfLocations<A>(y, __builtin_convertvector(height, Vector<A>));
      const Vector<A> right = PositionsOfLocations<A>(x, __builtin_convertvector(width, Vector<A>));
      SampleVector<A> together, alone;
      SetSamples<A>(down, right, mask, first_pixel, height, width, row, &together);
      for (int i = 0; i < kLanes; ++i) {
        const auto check = [&](bool holds, const char* what) {
          Check(holds, what, y[i], x[i], height[i], width[i]);
        };
        check(Same(down[i], PositionOfLocation(A{y[i]}, static_cast<A>(height[i]))),
              "the position of a location");
        check(Same(right[i], PositionOfLocation(A{x[i]}, static_cast<A>(width[i]))),
              "the position of a location");
        SetSamples<A>(down, right, mask, first_pixel, int64_t{height[i]}, int64_t{width[i]},
                      int64_t{width[i]}, &alone);
        for (int j = 0; j < 4; ++j) {
          check(together.corner[j][i] == alone.corner[j][i], "the corner of a lane's own map");
          check(Same(together.weight[j][i], alone.weight[j][i]), "the weight of its corner");
        }
      }
    }
  }
}

template <typename A>
void CheckBilinear() {
  CheckLocations<A>();
  // Beyond 2^24 float does not have every pixel; the kernels count up to 2^31 - 1.
  constexpr int64_t kSizes[] = {
      0, 1, 2, 3, 7, (1 << 24) - 1, (1 << 24) + 3, (int64_t{1} << 31) - 1};
  for (int64_t height : kSizes) {
    for (int64_t width : kSizes) {
      CheckBilinear<A>(height, width, width);
      CheckBilinear<A>(height, width, width + 5);  // a part of a wider map
    }
  }
}

// --- RoI pooling ---------------------------------------------------------------------------------

// The lanes' weights and slopes, summed over window rows that fall on the same pixel, against the
// lines of each lane. Sums of up to kMostSamples weights in another order: a rounding each.
template <typename A>
void CheckLanes(const Geometry& g, A low, A high, int64_t limit, int64_t bin) {
  constexpr int kLanes = Simd<A>::kLanes;
  const A tolerance = 2 * kMostSamples * std::numeric_limits<A>::epsilon();
  const BoxAxis<A> box = MakeBoxAxis<A>(g, low, high, g.pooled_height);
  const std::vector<A> offsets = {0,       A(0.1),   A(-0.1),
                                  A(0.5),  A(-3),    A(7),
                                  A(1e30), A(-1e30), std::numeric_limits<A>::infinity()};
  for (size_t first = 0; first < offsets.size(); first += kLanes) {
    Vector<A> shift = {};
    for (int i = 0; i < kLanes; ++i) {
      shift[i] = offsets[(first + i) % offsets.size()] * PixelsPerOffset(g, box);
    }
    LaneAxis<A> lanes;
    if (!MakeLaneAxis<A>(g, box, bin, shift, limit, 1, &lanes)) continue;
    for (int i = 0; i < kLanes; ++i) {
      AxisLine<A> lines[2 * kMostSamples];
      AxisLines<A> axis;
      axis.lines = lines;
      axis.Collect(MakeBinSamples<A>(g, box, bin, shift[i], limit));
      const auto check = [&](bool holds, const char* what) {
        Check(holds, what, shift[i], box.start, limit, bin);
      };
      check(lanes.samples[i] == axis.samples, "the number of samples");
      A weights = 0, lane_weights = 0;
      for (int r = 0; r < lanes.size; ++r) lane_weights += lanes.weight[r][i];
      for (int64_t t = 0; t < axis.size; ++t) {
        A weight = 0, slope = 0;
        for (int r = 0; r < lanes.size; ++r) {
          if (lanes.at[r][i] != lines[t].at) continue;
          weight += lanes.weight[r][i];
          slope += lanes.slope[r][i];
        }
        check(Close(weight, lines[t].weight, tolerance), "the weight of a pixel");
        check(slope == lines[t].slope, "the slope of a pixel");
        weights += lines[t].weight;
      }
      check(Close(weights, lane_weights, 8 * tolerance), "the sum of the weights");
    }
  }
}

template <typename A>
void CheckLanes() {
  constexpr A kBoxes[][2] = {{0, 3},           {A(0.5), A(1.5)}, {2, 2},      {-5, 4},
                             {6, 1},           {-1, -1},         {3, 20},     {A(2.25), A(2.75)},
                             {A(1e6), A(2e6)}, {A(-1e9), 2},     {4, A(4.5)}, {A(-0.5), A(-0.5)}};
  for (bool aligned : {false, true}) {
    for (int64_t samples = 1; samples <= kMostSamples; ++samples) {
      for (int64_t limit : {1, 2, 3, 8, 1 << 24}) {
        Geometry g;
        g.height = g.width = limit;
        g.pooled_height = g.pooled_width = 3;
        g.samples_per_bin = samples;
        g.gamma = 0.3f;
        g.aligned = aligned;
        for (const A(&box)[2] : kBoxes) {
          for (int64_t bin = 0; bin < g.pooled_height; ++bin) {
            CheckLanes<A>(g, box[0], box[1], limit, bin);
          }
        }
      }
    }
  }
}

// --- Numbers -------------------------------------------------------------------------------------

template <typename A>
void CheckNumbers() {
  for (int64_t limit : {1, 2, 7, 1 << 24}) {
    Check(LastPixel<A>(limit) == limit - 1, "the last pixel", 0, 0, limit, 1);
  }
  // The last one that A can name, never one that is not there.
  for (int64_t limit : {(int64_t{1} << 24) + 2, (int64_t{1} << 31) - 1, (int64_t{1} << 54) + 3}) {
    const A last = LastPixel<A>(limit);
    const A next = std::max(last + 1, std::nextafter(last, std::numeric_limits<A>::infinity()));
    Check(static_cast<int64_t>(last) < limit, "the last pixel", 0, 0, limit, 1);
    Check(static_cast<int64_t>(next) >= limit, "the last pixel", 0, 0, limit, 1);
  }
  for (A v : HostilePositions<A>(1000)) {
    Check(Same(RoundHalfAway(v), std::round(v)) || std::isinf(v), "a rounded number", v, 0, 0, 0);
    Check(IsFinite(v) == std::isfinite(v), "a finite number", v, 0, 0, 0);
  }
}

// What the bits of a 16-bit number say, with so many bits of exponent and mantissa.
double ValueOf(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  double value = std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else if (exponent < (1 << exponent_bits) - 1) {
    value = std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  } else if (mantissa == 0) {
    value = std::numeric_limits<double>::infinity();
  }
  return bits & 0x8000 ? -value : value;
}

// Every number of a 16-bit type, and what is between two of them: that is rounded to the nearer
// one, half way to the one whose last bit is 0, and half way past the largest one to infinity.
template <typename T>
void CheckNarrow(int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const auto value = [&](int bits) {
    return ValueOf(static_cast<uint16_t>(bits), exponent_bits, mantissa_bits);
  };
  const int infinity = ((1 << exponent_bits) - 1) << mantissa_bits;
  const auto check = [&](float number, int bits) {
    for (const int sign : {0, 0x8000}) {
      const uint16_t got = FromCompute<T>(sign ? -number : number).bits;
      Check(got == (bits | sign), "a narrowed number", number, got, bits, sign);
    }
  };
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float wide = ToCompute(T{static_cast<uint16_t>(bits)});
    Check(Same<double>(wide, value(bits)), "a widened number", wide, value(bits), bits, 0);
  }
  for (int bits = 0; bits < infinity; ++bits) {
    const double low = value(bits);
    const double step = bits + 1 < infinity ? value(bits + 1) - low : low - value(bits - 1);
    const float half_way = static_cast<float>(low + step / 2);
    check(static_cast<float>(low), bits);
    check(half_way, bits + (bits & 1));
    check(std::nextafter(half_way, 0.0f), bits);
    check(std::nextafter(half_way, std::numeric_limits<float>::infinity()), bits + 1);
  }
  check(static_cast<float>(1.5 * value(infinity - 1)), infinity);
  check(std::numeric_limits<float>::max(), infinity);
  check(std::numeric_limits<float>::infinity(), infinity);
  for (const uint32_t nan : {0x7fc00000u, 0x7fffffffu, 0xffffffffu, 0x7f800001u, 0xff802000u}) {
    float number;
    __builtin_memcpy(&number, &nan, sizeof(number));
    const T got = FromCompute<T>(number);
    Check(std::isnan(value(got.bits)), "a narrowed NaN", nan, got.bits, 0, 0);
  }
}

template <typename A>
void CheckAll() {
  CheckBilinear<A>();
  CheckLanes<A>();
  CheckNumbers<A>();
}

}  // namespace
}  // namespace tf_deformable::roi_pool

int main() {
  using namespace tf_deformable::roi_pool;
#if defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) return 77;
#elif defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 77;
#endif
  CheckAll<float>();
  CheckAll<double>();
  CheckNarrow<tf_deformable::Half>(5);
  CheckNarrow<tf_deformable::BFloat16>(8);
  std::printf("%lld values are the same\n", static_cast<long long>(compared));
}
