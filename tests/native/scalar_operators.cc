#include "scalar_operators.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "kernels/roi_pool/bins.h"
#include "kernels/sampling/bilinear.h"

namespace tf_deformable::scalar {
namespace {

// --- Bilinear samples ----------------------------------------------------------------------------

// One sample: its weights, and where its corners lie in a map whose pixels have so many channels.
struct Sample {
  double fraction_y, fraction_x;
  double weights[4];
  int64_t at[4];  // of the corner's first channel; -1: not on the map

  double Read(const Numbers& map, int corner, int64_t channel) const {
    return at[corner] < 0 ? 0 : map[at[corner] + channel];
  }
};

template <typename A>
Sample MakeSample(A y, A x, int64_t height, int64_t width, int64_t first_pixel, int64_t channels) {
  const SamplingPoint<A, int64_t> point = MakeSamplingPoint<A>(
      y, x, static_cast<int32_t>(height), static_cast<int32_t>(width), int64_t{width});
  Sample sample;
  sample.fraction_y = point.fraction_y;
  sample.fraction_x = point.fraction_x;
  CornerWeights<double>(sample.fraction_y, sample.fraction_x, 1, sample.weights);
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t pixel = first_pixel + point.pixel + corner / 2 * width + corner % 2;
    sample.at[corner] = (point.corners >> corner & 1) != 0 ? pixel * channels : -1;
  }
  return sample;
}

// The gradients of a sample whose products with the corners are `dots`, with the factor `mask`.
struct SampleGradients {
  Sum y, x, mask;
};

SampleGradients MakeGradients(const Sample& sample, double mask, const Sum (&dots)[4]) {
  const double fy = sample.fraction_y, fx = sample.fraction_x;
  SampleGradients gradients;
  const double by_y[4] = {fx - 1, -fx, 1 - fx, fx};
  const double by_x[4] = {fy - 1, 1 - fy, -fy, fy};
  for (int corner = 0; corner < 4; ++corner) {
    gradients.y.Add(mask * by_y[corner], dots[corner]);
    gradients.x.Add(mask * by_x[corner], dots[corner]);
    gradients.mask.Add(sample.weights[corner], dots[corner]);
  }
  return gradients;
}

// --- RoI pooling ---------------------------------------------------------------------------------

// The samples of one bin along one axis that count.
template <typename A>
struct BinAxis {
  std::vector<roi_pool::PixelPair<A, int64_t>> pairs;
  A samples;
  double unsure;  // how much the roundings of positions add to the sizes of weights
  bool rounding_decides = false;
};

// Whether a value that should be `exact`, but was computed with errors of up to `error`, may lie on
// the other side of `boundary`.
bool MayCross(long double exact, long double boundary, long double error) {
  return std::fabs(exact - boundary) <= error;
}

// Whether a number of type A is `exact`.
template <typename A>
bool IsExact(long double exact) {
  return static_cast<A>(exact) == exact;
}

template <typename A>
BinAxis<A> MakeBinAxis(const roi_pool::Geometry& g, A low, A high, int64_t bins, int64_t bin,
                       A offset, int64_t limit) {
  using Exact = long double;
  const roi_pool::BoxAxis<A> box = roi_pool::MakeBoxAxis<A>(g, low, high, bins);
  const A shift = offset * roi_pool::PixelsPerOffset(g, box);
  const roi_pool::BinSamples<A> samples = roi_pool::MakeBinSamples<A>(g, box, bin, shift, limit);

  // The same without a rounding.
  const Exact scale = g.spatial_scale;
  const Exact first = g.aligned ? Exact{low} : Exact{roi_pool::RoundHalfAway(low)};
  const Exact last = g.aligned ? Exact{high} : Exact{roi_pool::RoundHalfAway(high)} + 1;
  const Exact start = first * scale - 0.5L;
  const Exact size = g.aligned ? (last - first) * scale : std::max((last - first) * scale, 0.1L);
  const Exact bin_size = size / bins;
  const Exact exact_shift = Exact{offset} * g.gamma * size;
  const Exact ulp = std::numeric_limits<A>::epsilon();

  BinAxis<A> axis;
  if (g.aligned && g.samples_per_bin == 0) {
    const Exact error = 8 * ulp * (std::fabs(first * scale) + std::fabs(last * scale));
    axis.rounding_decides = box.bin != bin_size && MayCross(bin_size, std::round(bin_size), error);
  }
  axis.samples = samples.count;
  const Exact count = samples.aligned ? Exact{samples.count} : Exact(g.samples_per_bin);
  const Exact reach = std::fabs(first * scale) + std::fabs(last * scale) + std::fabs(size) +
                      std::fabs(exact_shift) + 1;
  const Exact error = 8 * ulp * reach;
  constexpr Exact kSumErrorUlps = 168;  // kSumTolerance of results.h: 2e-5 of float
  axis.unsure = static_cast<double>(2 * reach / kSumErrorUlps);
  const Exact exact_base = start + bin * bin_size + exact_shift;
  const bool base_is_exact = box.start == start && (bin == 0 || box.bin == bin_size) &&
                             IsExact<A>(bin * bin_size) && shift == exact_shift &&
                             samples.base == exact_base;
  for (int64_t s = samples.first; s < samples.last; ++s) {
    A position;
    const bool counts = samples.Position(s, &position);
    if (counts) {
      if (!samples.aligned) axis.samples += 1;
      if (limit > 0) axis.pairs.push_back(roi_pool::MakePixelPair<int64_t>(position));
    }
    const bool reversed = samples.aligned && samples.spacing < 0;
    const Exact index = reversed ? count - 1 - s : Exact(s);
    const Exact within = samples.aligned ? index + 0.5L : index;
    const Exact exact = exact_base + within * bin_size / count;
    // A product of rounded numbers may be right by luck, and is not where it is fused with a sum.
    if (base_is_exact && IsExact<A>(within * bin_size / count) && IsExact<A>(exact) &&
        (within == 0 || samples.spacing == bin_size / count)) {
      continue;
    }
    const Exact lowest = samples.aligned ? -1 : -0.5L;
    axis.rounding_decides |= MayCross(exact, lowest, error) ||
                             MayCross(exact, Exact{samples.highest}, error) ||
                             (counts && MayCross(exact, std::round(exact), error));
  }
  return axis;
}

}  // namespace

// --- The convolution -----------------------------------------------------------------------------

template <typename A>
Convolution Convolve(const deformable_conv2d::Geometry& g, const Numbers& inputs,
                     const Numbers& filters, const Numbers& offsets, const Numbers& mask,
                     const Numbers& bias, const Numbers& grad_output) {
  Convolution results;
  results.output.resize(grad_output.size());
  results.grad_inputs.resize(inputs.size());
  results.grad_filters.resize(filters.size());
  results.grad_offsets.resize(offsets.size());
  results.grad_mask.resize(mask.size());
  const int64_t group_filters = g.group_filters(), group_channels = g.group_channels();
  for (int64_t pixel = 0; pixel < g.output_pixels(); ++pixel) {
    const int64_t image = pixel / g.output_size();
    const int64_t first_y = pixel % g.output_size() / g.output_width * g.stride_y - g.pad_top;
    const int64_t first_x = pixel % g.output_width * g.stride_x - g.pad_left;
    Sum* const output = results.output.data() + pixel * g.filters;
    const double* const upstream = grad_output.data() + pixel * g.filters;
    for (size_t f = 0; f < bias.size(); ++f) output[f].Add(bias[f]);
    for (int64_t offset_group = 0; offset_group < g.offset_groups; ++offset_group) {
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t at = (pixel * g.offset_groups + offset_group) * g.taps() + tap;
        const A grid_y = static_cast<A>(first_y + tap / g.kernel_width * g.dilation_y);
        const A grid_x = static_cast<A>(first_x + tap % g.kernel_width * g.dilation_x);
        const Sample sample = MakeSample<A>(grid_y + static_cast<A>(offsets[2 * at]),
                                            grid_x + static_cast<A>(offsets[2 * at + 1]), g.height,
                                            g.width, image * g.height * g.width, g.channels);
        const double factor = mask.empty() ? 1 : mask[at];
        Sum dots[4];
        const int64_t first = offset_group * g.offset_group_channels();
        for (int64_t c = first; c < first + g.offset_group_channels(); ++c) {
          const int64_t group = c / group_channels;
          const int64_t row = (tap * group_channels + c % group_channels) * g.filters;
          Sum value, grad_sample;
          for (int corner = 0; corner < 4; ++corner) {
            value.Add(factor * sample.weights[corner] * sample.Read(inputs, corner, c));
          }
          for (int64_t f = group * group_filters; f < (group + 1) * group_filters; ++f) {
            output[f].Add(filters[row + f], value);
            results.grad_filters[row + f].Add(upstream[f], value);
            grad_sample.Add(filters[row + f] * upstream[f]);
          }
          for (int corner = 0; corner < 4; ++corner) {
            dots[corner].Add(sample.Read(inputs, corner, c), grad_sample);
            if (sample.at[corner] < 0) continue;
            results.grad_inputs[sample.at[corner] + c].Add(factor * sample.weights[corner],
                                                           grad_sample);
          }
        }
        const SampleGradients gradients = MakeGradients(sample, factor, dots);
        results.grad_offsets[2 * at] = gradients.y;
        results.grad_offsets[2 * at + 1] = gradients.x;
        if (!mask.empty()) results.grad_mask[at] = gradients.mask;
      }
    }
  }
  return results;
}

// --- The branch ----------------------------------------------------------------------------------

namespace {

// Calls visit(pixel of the results, tap, pixel of the inputs) for all that lie on the map.
template <typename Visit>
void ForEachTap(const deformable_conv2d::Geometry& g, const Visit& visit) {
  for (int64_t pixel = 0; pixel < g.output_pixels(); ++pixel) {
    const int64_t image = pixel / g.output_size();
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const int64_t y = pixel % g.output_size() / g.output_width * g.stride_y - g.pad_top +
                        tap / g.kernel_width * g.dilation_y;
      const int64_t x =
          pixel % g.output_width * g.stride_x - g.pad_left + tap % g.kernel_width * g.dilation_x;
      if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;
      visit(pixel, tap, (image * g.height + y) * g.width + x);
    }
  }
}

}  // namespace

Branch PredictOffsets(const deformable_conv2d::Geometry& g, const Numbers& inputs,
                      const Numbers& filters, const Numbers& bias, double largest_mask,
                      bool has_mask) {
  Sums results(g.output_pixels() * g.filters);
  for (size_t i = 0; i < results.size(); ++i) results[i].Add(bias[i % g.filters]);
  ForEachTap(g, [&](int64_t pixel, int64_t tap, int64_t from) {
    for (int64_t c = 0; c < g.channels; ++c) {
      const double* const row = filters.data() + (tap * g.channels + c) * g.filters;
      for (int64_t f = 0; f < g.filters; ++f) {
        results[pixel * g.filters + f].Add(inputs[from * g.channels + c] * row[f]);
      }
    }
  });
  Branch branch;
  const int64_t samples = g.offset_groups * g.taps();
  for (int64_t pixel = 0; pixel < g.output_pixels(); ++pixel) {
    const Sum* const of_pixel = results.data() + pixel * g.filters;
    branch.offsets.insert(branch.offsets.end(), of_pixel, of_pixel + 2 * samples);
    for (int64_t i = 2 * samples; has_mask && i < 3 * samples; ++i) {
      Sum mask;
      mask.value = largest_mask / (1 + std::exp(-of_pixel[i].value));
      mask.size = largest_mask * (1 + of_pixel[i].size);  // its slope is less than largest_mask
      branch.mask.push_back(mask);
    }
  }
  return branch;
}

BranchGradients PredictOffsetsGradients(const deformable_conv2d::Geometry& g, const Numbers& inputs,
                                        const Numbers& filters, const Numbers& mask,
                                        double largest_mask, const Numbers& grad_offsets,
                                        const Numbers& grad_mask) {
  const int64_t samples = g.offset_groups * g.taps();
  Sums upstream(g.output_pixels() * g.filters);
  for (int64_t pixel = 0; pixel < g.output_pixels(); ++pixel) {
    Sum* const of_pixel = upstream.data() + pixel * g.filters;
    for (int64_t i = 0; i < 2 * samples; ++i) {
      of_pixel[i].Add(grad_offsets[pixel * 2 * samples + i]);
    }
    for (int64_t i = 0; !mask.empty() && i < samples; ++i) {
      const double m = mask[pixel * samples + i], gradient = grad_mask[pixel * samples + i];
      of_pixel[2 * samples + i].Add(gradient * m);
      of_pixel[2 * samples + i].Add(-gradient * m * m / largest_mask);
    }
  }
  BranchGradients gradients;
  gradients.grad_inputs.resize(inputs.size());
  gradients.grad_filters.resize(filters.size());
  gradients.grad_bias.resize(g.filters);
  for (size_t i = 0; i < upstream.size(); ++i) {
    gradients.grad_bias[i % g.filters].Add(1, upstream[i]);
  }
  ForEachTap(g, [&](int64_t pixel, int64_t tap, int64_t from) {
    for (int64_t c = 0; c < g.channels; ++c) {
      const int64_t row = (tap * g.channels + c) * g.filters;
      for (int64_t f = 0; f < g.filters; ++f) {
        const Sum& of_result = upstream[pixel * g.filters + f];
        gradients.grad_inputs[from * g.channels + c].Add(filters[row + f], of_result);
        gradients.grad_filters[row + f].Add(inputs[from * g.channels + c], of_result);
      }
    }
  });
  return gradients;
}

// --- RoI pooling ---------------------------------------------------------------------------------

template <typename A>
RoIPooling PoolRoIs(const roi_pool::Geometry& g, const Numbers& inputs, const std::vector<A>& boxes,
                    const int32_t* box_indices, const Numbers& offsets, const Numbers& mask,
                    const Numbers& grad_output) {
  RoIPooling results;
  results.output.resize(grad_output.size());
  results.grad_inputs.resize(inputs.size());
  results.grad_offsets.resize(offsets.size());
  results.grad_mask.resize(mask.size());
  for (int64_t index = 0; index < g.boxes * g.bins() * g.classes; ++index) {
    const int64_t box = index / (g.bins() * g.classes);
    const int64_t bin = index / g.classes % g.bins(), cls = index % g.classes;
    const int64_t i = bin / g.pooled_width, j = bin % g.pooled_width;
    const int64_t image = box_indices[box];
    if (image < 0) continue;
    const A* const corners = boxes.data() + 4 * box;
    const double factor = mask.empty() ? 1 : mask[box * g.bins() + bin];
    const int64_t offset_at = roi_pool::OffsetsOfBin(g, box, i, j, cls);
    const A dy = offsets.empty() ? A{0} : static_cast<A>(offsets[offset_at]);
    const A dx = offsets.empty() ? A{0} : static_cast<A>(offsets[offset_at + 1]);
    const int64_t first = cls * g.class_depth();
    const int64_t out = (box * g.bins() + bin) * g.depth + first;

    Sum by_y, by_x, dot;
    if (!roi_pool::IsFiniteBox(corners) || dy != dy || dx != dx) {
      for (int64_t c = 0; c < g.class_depth(); ++c) results.output[out + c].Add(NAN);
      by_y.Add(NAN), by_x.Add(NAN), dot.Add(NAN);
    } else {
      const BinAxis<A> y =
          MakeBinAxis<A>(g, corners[0], corners[2], g.pooled_height, i, dy, g.height);
      const BinAxis<A> x =
          MakeBinAxis<A>(g, corners[1], corners[3], g.pooled_width, j, dx, g.width);
      results.rounding_decides |= y.rounding_decides || x.rounding_decides;
      const double scale = roi_pool::BinScale<double>(y.samples, x.samples, 0, 0);
      const int64_t map_channel = roi_pool::MapOfBin(g, i, j) * g.depth + first;
      const double pixels_y = roi_pool::PixelsPerOffset(
          g, roi_pool::MakeBoxAxis<A>(g, corners[0], corners[2], g.pooled_height));
      const double pixels_x = roi_pool::PixelsPerOffset(
          g, roi_pool::MakeBoxAxis<A>(g, corners[1], corners[3], g.pooled_width));
      for (const auto& row : y.pairs) {
        for (const auto& column : x.pairs) {
          for (int corner = 0; corner < 4; ++corner) {
            const bool down = corner / 2 != 0, right = corner % 2 != 0;
            // At a pixel there is no other, and no slope.
            if ((down && row.fraction == 0) || (right && column.fraction == 0)) continue;
            const double weight_y = down ? row.fraction : 1 - static_cast<double>(row.fraction);
            const double weight_x =
                right ? column.fraction : 1 - static_cast<double>(column.fraction);
            const double slope_y = row.fraction == 0 ? 0 : down ? 1 : -1;
            const double slope_x = column.fraction == 0 ? 0 : right ? 1 : -1;
            const int64_t pixel =
                (image * g.height + row.low + down) * g.width + column.low + right;
            const int64_t at = pixel * g.channels + map_channel;
            const double size_y = weight_y + y.unsure, size_x = weight_x + x.unsure;
            Sum product;
            for (int64_t c = 0; c < g.class_depth(); ++c) {
              const auto add = [&](double number, Sum* sum) {
                const double term = factor * scale * number;
                sum->Add(term * weight_y * weight_x, std::fabs(term) * size_y * size_x);
              };
              add(inputs[at + c], &results.output[out + c]);
              add(grad_output[out + c], &results.grad_inputs[at + c]);
              product.Add(inputs[at + c] * grad_output[out + c]);
            }
            const auto add = [&](double term_factor, double weight, double size, Sum* sum) {
              sum->Add(term_factor * weight * product.value,
                       std::fabs(term_factor) * size * product.size);
            };
            add(scale, weight_y * weight_x, size_y * size_x, &dot);
            add(factor * scale * slope_y * pixels_y, weight_x, size_x, &by_y);
            add(factor * scale * slope_x * pixels_x, weight_y, size_y, &by_x);
          }
        }
      }
    }
    if (!offsets.empty()) {
      results.grad_offsets[offset_at].Add(1, by_y);
      results.grad_offsets[offset_at + 1].Add(1, by_x);
    }
    if (!mask.empty()) results.grad_mask[box * g.bins() + bin].Add(1, dot);
  }
  return results;
}

// --- Attention -----------------------------------------------------------------------------------

template <typename A>
Attention Attend(const deformable_attention::Geometry& g, const Numbers& value,
                 const Numbers& locations, const Numbers& weights, const Numbers& grad_output) {
  Attention results;
  results.output.resize(grad_output.size());
  results.grad_value.resize(value.size());
  results.grad_locations.resize(locations.size());
  results.grad_weights.resize(weights.size());
  const bool normalized = g.coordinates == deformable_attention::Coordinates::kNormalized;
  std::vector<const deformable_attention::Level*> levels;  // of each sample of a row
  for (const deformable_attention::Level& level : g.maps) {
    levels.insert(levels.end(), level.points, &level);
  }
  for (size_t at = 0; at < weights.size(); ++at) {
    const int64_t row = static_cast<int64_t>(at) / g.samples;  // image, query, head
    const int64_t head = row % g.heads, image = row / g.heads / g.queries;
    const deformable_attention::Level& map = *levels[static_cast<int64_t>(at) % g.samples];
    A y = static_cast<A>(locations[2 * at]), x = static_cast<A>(locations[2 * at + 1]);
    if (normalized) {
      y = PositionOfLocation(y, static_cast<A>(map.height));
      x = PositionOfLocation(x, static_cast<A>(map.width));
    }
    const Sample sample = MakeSample<A>(y, x, map.height, map.width,
                                        image * g.pixels + map.first_pixel, g.channels());
    Sum dots[4];
    for (int64_t c = 0; c < g.depth; ++c) {
      const double upstream = grad_output[row * g.depth + c];
      const int64_t channel = head * g.depth + c;
      for (int corner = 0; corner < 4; ++corner) {
        const double pixel = sample.Read(value, corner, channel);
        const double weight = weights[at] * sample.weights[corner];
        results.output[row * g.depth + c].Add(weight * pixel);
        dots[corner].Add(pixel * upstream);
        if (sample.at[corner] < 0) continue;
        results.grad_value[sample.at[corner] + channel].Add(weight * upstream);
      }
    }
    const SampleGradients gradients = MakeGradients(sample, weights[at], dots);
    results.grad_locations[2 * at].Add(normalized ? map.height : 1, gradients.y);
    results.grad_locations[2 * at + 1].Add(normalized ? map.width : 1, gradients.x);
    results.grad_weights[at] = gradients.mask;
  }
  return results;
}

template Convolution Convolve<float>(const deformable_conv2d::Geometry&, const Numbers&,
                                     const Numbers&, const Numbers&, const Numbers&, const Numbers&,
                                     const Numbers&);
template Convolution Convolve<double>(const deformable_conv2d::Geometry&, const Numbers&,
                                      const Numbers&, const Numbers&, const Numbers&,
                                      const Numbers&, const Numbers&);
template RoIPooling PoolRoIs<float>(const roi_pool::Geometry&, const Numbers&,
                                    const std::vector<float>&, const int32_t*, const Numbers&,
                                    const Numbers&, const Numbers&);
template RoIPooling PoolRoIs<double>(const roi_pool::Geometry&, const Numbers&,
                                     const std::vector<double>&, const int32_t*, const Numbers&,
                                     const Numbers&, const Numbers&);
template Attention Attend<float>(const deformable_attention::Geometry&, const Numbers&,
                                 const Numbers&, const Numbers&, const Numbers&);
template Attention Attend<double>(const deformable_attention::Geometry&, const Numbers&,
                                  const Numbers&, const Numbers&, const Numbers&);

}  // namespace tf_deformable::scalar
