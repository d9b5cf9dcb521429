#include "kernels/deformable_conv2d/geometry.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/base/integers.h"
#include "kernels/base/validation.h"

namespace tf_deformable::deformable_conv2d {
namespace {

std::string Message(const Arguments& a, const std::string& text) {
  return std::string(a.op) + ": " + text;
}

// One spatial axis of the output: its size and the padding before it.
struct Axis {
  int64_t output = kUnknown;
  int64_t pad_before = 0;
  int64_t padded = kUnknown;
  int64_t extent = kUnknown;  // of the dilated kernel
};

Axis ResolveAxis(int64_t input, int64_t kernel, int64_t stride, int64_t dilation, Padding padding,
                 int64_t before, int64_t after) {
  Axis axis;
  if (Known(kernel)) axis.extent = (kernel - 1) * dilation + 1;
  if (padding == Padding::kSame) {
    if (!Known(input)) return axis;
    axis.output = CeilDiv(input, stride);
    if (Known(axis.extent)) {
      axis.pad_before = std::max<int64_t>((axis.output - 1) * stride + axis.extent - input, 0) / 2;
    }
    return axis;
  }
  axis.pad_before = before;
  if (!Known(input) || !Known(axis.extent)) return axis;
  axis.padded = input + before + after;
  axis.output = axis.padded < axis.extent ? 0 : (axis.padded - axis.extent) / stride + 1;
  return axis;
}

std::string CheckAttributes(const Arguments& a) {
  if (!AllInRange(a.strides, 2, 1)) {
    return Message(a, "strides must be 2 positive integers (y, x)" + AtMost(kLargestAttribute) +
                          ", got " + ListToString(a.strides));
  }
  if (!AllInRange(a.dilations, 2, 1)) {
    return Message(a, "dilations must be 2 positive integers (y, x)" + AtMost(kLargestAttribute) +
                          ", got " + ListToString(a.dilations));
  }
  if (a.padding == Padding::kExplicit && !AllInRange(a.explicit_paddings, 4, 0)) {
    return Message(a,
                   "explicit padding must be 4 non-negative integers (top, bottom, left, right)" +
                       AtMost(kLargestAttribute) + ", got " + ListToString(a.explicit_paddings));
  }
  return "";
}

std::string CheckRanks(const Arguments& a) {
  std::string error = RankError(a.op, "inputs", "[N,H,W,C]", 4, a.inputs);
  if (error.empty()) error = RankError(a.op, "filters", "[kh,kw,C/groups,F]", 4, a.filters);
  if (error.empty()) error = RankError(a.op, "offsets", "[N,Ho,Wo,G*kh*kw*2]", 4, a.offsets);
  if (error.empty() && a.mask) error = RankError(a.op, "mask", "[N,Ho,Wo,G*kh*kw]", 4, *a.mask);
  if (error.empty() && a.bias) error = RankError(a.op, "bias", "[F]", 1, *a.bias);
  if (error.empty() && a.grad_output) {
    error = RankError(a.op, "grad_output", "[N,Ho,Wo,F]", 4, *a.grad_output);
  }
  return error;
}

// Batch, output height and output width are common to offsets, mask and grad_output.
bool MapDiffers(const Shape& shape, const Geometry& g) {
  return Differ(shape.dim(0), g.batch) || Differ(shape.dim(1), g.output_height) ||
         Differ(shape.dim(2), g.output_width);
}

std::string MapError(const Arguments& a, const char* name, const char* layout, const Geometry& g,
                     const std::string& last, const Shape& shape) {
  std::string expected = ToString({g.batch, g.output_height, g.output_width});
  expected.back() = ',';
  return ShapeError(a.op, name, layout, expected + last + "]", shape);
}

// What is wrong with the arguments, or an empty string.
std::string FillGeometry(const Arguments& a, Geometry* geometry) {
  Geometry& g = *geometry;
  std::string error = CheckAttributes(a);
  if (error.empty()) error = CheckRanks(a);
  if (!error.empty()) return error;

  const Shape any;  // stands for an absent optional tensor: nothing known
  const Shape& mask = a.mask ? *a.mask : any;
  const Shape& bias = a.bias ? *a.bias : any;
  const Shape& grad_output = a.grad_output ? *a.grad_output : any;

  g.stride_y = a.strides[0];
  g.stride_x = a.strides[1];
  g.dilation_y = a.dilations[0];
  g.dilation_x = a.dilations[1];
  g.kernel_height = a.filters.dim(0);
  g.kernel_width = a.filters.dim(1);
  const int64_t filter_channels = a.filters.dim(2);
  g.filters = FirstKnown({a.filters.dim(3), bias.dim(0), grad_output.dim(3)});
  g.height = a.inputs.dim(1);
  g.width = a.inputs.dim(2);
  g.channels = a.inputs.dim(3);

  // Kernels count rows and columns in 32 bits.
  constexpr int64_t kLargestSize = std::numeric_limits<int32_t>::max();
  if (std::max(g.height, g.width) > kLargestSize) {
    return Message(
        a, "inputs height and width must be at most 2147483647, got shape " + ToString(a.inputs));
  }
  if (std::max(g.kernel_height, g.kernel_width) > kLargestSize) {
    return Message(
        a, "filters height and width must be at most 2147483647, got shape " + ToString(a.filters));
  }
  for (int i = 0; a.filters.known_rank && i < 4; ++i) {
    if (a.filters.dims[i] == 0) {
      return Message(
          a,
          "filters must have kernel height, kernel width, input channels and output channels of "
          "at least 1, got shape " +
              ToString(a.filters));
    }
  }
  if (Known(g.channels) && Known(filter_channels)) {
    if (g.channels == 0 || g.channels % filter_channels != 0) {
      return Message(
          a,
          "inputs channels must be a multiple of the filters' input channels (C = groups * "
          "filters.shape[2]), got C=" +
              DimensionToString(g.channels) + " and filters shape " + ToString(a.filters));
    }
    g.groups = g.channels / filter_channels;
    if (Known(g.filters) && g.filters % g.groups != 0) {
      return Message(a, "filters output channels must be a multiple of groups, got F=" +
                            DimensionToString(g.filters) +
                            " and groups=" + DimensionToString(g.groups));
    }
  }

  const bool is_explicit = a.padding == Padding::kExplicit;
  const auto pad = [&](int i) { return is_explicit ? a.explicit_paddings[i] : int64_t{0}; };
  const Axis y =
      ResolveAxis(g.height, g.kernel_height, g.stride_y, g.dilation_y, a.padding, pad(0), pad(1));
  const Axis x =
      ResolveAxis(g.width, g.kernel_width, g.stride_x, g.dilation_x, a.padding, pad(2), pad(3));
  const bool too_large = (g.height > 0 && Known(y.padded) && y.padded < y.extent) ||
                         (g.width > 0 && Known(x.padded) && x.padded < x.extent);
  if (too_large) {
    return Message(a, "the dilated kernel must fit into the padded inputs, got kernel extent " +
                          ToString({y.extent, x.extent}) + " and padded size " +
                          ToString({y.padded, x.padded}));
  }
  g.pad_top = y.pad_before;
  g.pad_left = x.pad_before;
  g.output_height = FirstKnown({y.output, a.offsets.dim(1), mask.dim(1), grad_output.dim(1)});
  g.output_width = FirstKnown({x.output, a.offsets.dim(2), mask.dim(2), grad_output.dim(2)});
  g.batch = FirstKnown({a.inputs.dim(0), a.offsets.dim(0), mask.dim(0), grad_output.dim(0)});

  const int64_t taps = Product(g.kernel_height, g.kernel_width);
  const int64_t offset_channels = a.offsets.dim(3);
  const bool channels_wrong = Known(offset_channels) && Known(taps) &&
                              (offset_channels == 0 || offset_channels % Product(taps, 2) != 0);
  if (channels_wrong || MapDiffers(a.offsets, g)) {
    return MapError(a, "offsets", "[N,Ho,Wo,G*kh*kw*2]", g,
                    "G*" + DimensionToString(Product(taps, 2)), a.offsets);
  }
  if (Known(offset_channels) && Known(taps)) {
    g.offset_groups = offset_channels / Product(taps, 2);
  } else if (Known(mask.dim(3)) && Known(taps)) {
    g.offset_groups = std::max<int64_t>(mask.dim(3) / taps, 1);  // checked below
  }
  if (Known(g.channels) && Known(g.offset_groups) && g.channels % g.offset_groups != 0) {
    return Message(a, "inputs channels must be a multiple of the offset groups, got C=" +
                          DimensionToString(g.channels) +
                          " and G=" + DimensionToString(g.offset_groups));
  }
  const int64_t mask_channels = Product(g.offset_groups, taps);
  if (a.mask && (Differ(mask.dim(3), mask_channels) || MapDiffers(mask, g))) {
    return MapError(a, "mask", "[N,Ho,Wo,G*kh*kw]", g, DimensionToString(mask_channels), mask);
  }
  if (a.bias && Differ(bias.dim(0), g.filters)) {
    return ShapeError(a.op, "bias", "[F]", ToString({g.filters}), bias);
  }
  if (a.grad_output && (Differ(grad_output.dim(3), g.filters) || MapDiffers(grad_output, g))) {
    return MapError(a, "grad_output", "[N,Ho,Wo,F]", g, DimensionToString(g.filters), grad_output);
  }
  return OutputError(a.op, {g.batch, g.output_height, g.output_width, g.filters});
}

// Likewise, of what the branch has beyond a convolution.
std::string FillBranch(const Arguments& a, bool has_mask, const BranchGradientArguments* gradient,
                       Geometry* geometry) {
  Geometry& g = *geometry;
  if (Known(g.groups) && g.groups != 1) {
    return Message(
        a, "filters must have the channels of inputs, got C=" + DimensionToString(g.channels) +
               " and filters shape " + ToString(a.filters));
  }
  const int64_t taps = Product(g.kernel_height, g.kernel_width);
  const int64_t group_filters = Product(taps, has_mask ? 3 : 2);
  if (Known(g.filters) && Known(group_filters)) {
    if (g.filters % group_filters != 0) {
      return Message(a, "filters output channels must be a multiple of kh*kw*" +
                            std::string(has_mask ? "3" : "2") + "=" +
                            DimensionToString(group_filters) + ", got filters shape " +
                            ToString(a.filters));
    }
    g.offset_groups = g.filters / group_filters;
  }
  if (gradient == nullptr) return "";

  const int64_t samples = Product(g.offset_groups, taps);
  const auto check = [&](const char* name, int64_t channels, const char* layout,
                         const Shape& shape) {
    const std::string error = RankError(a.op, name, layout, 4, shape);
    if (!error.empty()) return error;
    if (!Differ(shape.dim(3), channels) && !MapDiffers(shape, g)) return std::string();
    return MapError(a, name, layout, g, DimensionToString(channels), shape);
  };
  std::string error =
      check("grad_offsets", Product(samples, 2), "[N,Ho,Wo,G*kh*kw*2]", gradient->grad_offsets);
  for (const auto& [name, mask] :
       {std::pair{"mask", &gradient->mask}, {"grad_mask", &gradient->grad_mask}}) {
    if (error.empty() && *mask) error = check(name, samples, "[N,Ho,Wo,G*kh*kw]", **mask);
  }
  return error;
}

}  // namespace

Status Parse(const Arguments& arguments, Geometry* geometry) {
  std::string error = FillGeometry(arguments, geometry);
  if (error.empty()) return Status();
  return Status(Status::Code::kInvalidArgument, std::move(error));
}

Status ParseBranch(const Arguments& arguments, bool has_mask,
                   const BranchGradientArguments* gradient, Geometry* geometry) {
  std::string error = FillGeometry(arguments, geometry);
  if (error.empty()) error = FillBranch(arguments, has_mask, gradient, geometry);
  if (error.empty()) return Status();
  return Status(Status::Code::kInvalidArgument, std::move(error));
}

}  // namespace tf_deformable::deformable_conv2d
