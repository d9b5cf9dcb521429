#include "kernels/roi_pool/geometry.h"

#include <cmath>
#include <sstream>

#include "kernels/base/validation.h"

namespace tf_deformable::roi_pool {
namespace {

// They weigh the pixels of a bin to a thousandth of it. The work of a bin grows with their number,
// whatever the size of the map.
constexpr int64_t kMostSamplesPerBin = 1024;

// The function that was called. Position-sensitive pooling of one map is plain pooling, and called
// so.
const char* OperatorName(int64_t group_size) {
  return group_size == 1 ? "deformable_roi_pool" : "deformable_psroi_pool";
}

std::string Message(const Arguments& a, const std::string& text) {
  return std::string(OperatorName(a.group_size)) + ": " + text;
}

std::string ToText(float value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

std::string CheckAttributes(const Arguments& a) {
  if (!AllInRange(a.output_size, 2, 1)) {
    return Message(a, "output_size must be 2 positive integers (ph, pw)" +
                          AtMost(kLargestAttribute) + ", got " + ListToString(a.output_size));
  }
  if (!AllInRange({a.group_size}, 1, 1)) {
    return Message(a, "group_size must be a positive integer" + AtMost(kLargestAttribute) +
                          ", got " + std::to_string(a.group_size));
  }
  if (a.samples_per_bin < (a.aligned ? 0 : 1) || a.samples_per_bin > kMostSamplesPerBin) {
    return Message(
        a,
        "samples_per_bin must be a positive integer (or 0 with aligned=True: as many as pixels)" +
            AtMost(kMostSamplesPerBin) + ", got " + std::to_string(a.samples_per_bin));
  }
  if (!std::isfinite(a.spatial_scale) || a.spatial_scale <= 0) {
    return Message(a, "spatial_scale must be finite and positive, got " + ToText(a.spatial_scale));
  }
  if (!std::isfinite(a.gamma)) {
    return Message(a, "gamma must be finite, got " + ToText(a.gamma));
  }
  return "";
}

std::string CheckRanks(const Arguments& a) {
  const char* const op = OperatorName(a.group_size);
  std::string error = RankError(op, "inputs", "[N,H,W,k*k*D]", 4, a.inputs);
  if (error.empty()) error = RankError(op, "boxes", "[R,4]", 2, a.boxes);
  if (error.empty()) error = RankError(op, "box_indices", "[R]", 1, a.box_indices);
  if (error.empty() && a.offsets) {
    error = RankError(op, "offsets", "[R,part_h,part_w,classes,2]", 5, *a.offsets);
  }
  if (error.empty() && a.mask) error = RankError(op, "mask", "[R,ph,pw]", 3, *a.mask);
  if (error.empty() && a.grad_output) {
    error = RankError(op, "grad_output", "[R,ph,pw,D]", 4, *a.grad_output);
  }
  return error;
}

// What is wrong with the arguments, or an empty string.
std::string FillGeometry(const Arguments& a, Geometry* geometry) {
  Geometry& g = *geometry;
  const char* const op = OperatorName(a.group_size);
  std::string error = CheckAttributes(a);
  if (error.empty()) error = CheckRanks(a);
  if (!error.empty()) return error;

  const Shape any;  // stands for an absent optional tensor: nothing known
  const Shape& offsets = a.offsets ? *a.offsets : any;
  const Shape& mask = a.mask ? *a.mask : any;
  const Shape& grad_output = a.grad_output ? *a.grad_output : any;

  g.batch = a.inputs.dim(0);
  g.height = a.inputs.dim(1);
  g.width = a.inputs.dim(2);
  g.channels = a.inputs.dim(3);
  g.pooled_height = a.output_size[0];
  g.pooled_width = a.output_size[1];
  g.group_size = a.group_size;
  g.samples_per_bin = a.samples_per_bin;
  g.spatial_scale = a.spatial_scale;
  g.gamma = a.gamma;
  g.aligned = a.aligned;

  const int64_t maps = g.group_size * g.group_size;
  if (Known(g.channels)) {
    if (g.channels == 0 || g.channels % maps != 0) {
      return Message(
          a, "inputs channels must be a positive multiple of group_size*group_size, got C=" +
                 DimensionToString(g.channels) +
                 " and group_size=" + DimensionToString(g.group_size));
    }
    g.depth = g.channels / maps;
  } else {
    g.depth = grad_output.dim(3);
  }
  g.boxes = FirstKnown(
      {a.boxes.dim(0), a.box_indices.dim(0), offsets.dim(0), mask.dim(0), grad_output.dim(0)});
  if (Differ(a.boxes.dim(0), g.boxes) || Differ(a.boxes.dim(1), 4)) {
    return ShapeError(op, "boxes", "[R,4]", ToString({g.boxes, 4}), a.boxes);
  }
  if (Differ(a.box_indices.dim(0), g.boxes)) {
    return ShapeError(op, "box_indices", "[R]", ToString({g.boxes}), a.box_indices);
  }
  if (a.offsets) {
    if (Differ(offsets.dim(0), g.boxes) || offsets.dim(1) == 0 || offsets.dim(2) == 0 ||
        offsets.dim(3) == 0 || Differ(offsets.dim(4), 2)) {
      return ShapeError(op, "offsets", "[R,part_h,part_w,classes,2]",
                        "[" + DimensionToString(g.boxes) + ",>=1,>=1,>=1,2]", offsets);
    }
    g.part_height = offsets.dim(1);
    g.part_width = offsets.dim(2);
    g.classes = offsets.dim(3);
    if (Known(g.depth) && Known(g.classes) && g.depth % g.classes != 0) {
      return Message(a, "output channels must be a multiple of the offset classes, got D=" +
                            DimensionToString(g.depth) +
                            " and classes=" + DimensionToString(g.classes));
    }
  }
  const auto pooled_differs = [&](const Shape& shape) {
    return Differ(shape.dim(0), g.boxes) || Differ(shape.dim(1), g.pooled_height) ||
           Differ(shape.dim(2), g.pooled_width);
  };
  if (a.mask && pooled_differs(mask)) {
    return ShapeError(op, "mask", "[R,ph,pw]", ToString({g.boxes, g.pooled_height, g.pooled_width}),
                      mask);
  }
  if (a.grad_output && (pooled_differs(grad_output) || Differ(grad_output.dim(3), g.depth))) {
    return ShapeError(op, "grad_output", "[R,ph,pw,D]",
                      ToString({g.boxes, g.pooled_height, g.pooled_width, g.depth}), grad_output);
  }
  return OutputError(op, {g.boxes, g.pooled_height, g.pooled_width, g.depth});
}

}  // namespace

Status Parse(const Arguments& arguments, Geometry* geometry) {
  std::string error = FillGeometry(arguments, geometry);
  if (error.empty()) return Status();
  return Status(Status::Code::kInvalidArgument, std::move(error));
}

Status CheckBoxIndices(const Geometry& g, const int32_t* box_indices) {
  for (int64_t i = 0; i < g.boxes; ++i) {
    if (box_indices[i] < -1 || box_indices[i] >= g.batch) {
      return Status(Status::Code::kInvalidArgument,
                    std::string(OperatorName(g.group_size)) +
                        ": box_indices must be -1 (padding) or in [0,N) = [0," +
                        DimensionToString(g.batch) + "), got " + std::to_string(box_indices[i]) +
                        " at " + std::to_string(i));
    }
  }
  return Status();
}

}  // namespace tf_deformable::roi_pool
