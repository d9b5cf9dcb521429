#include "geometry_cases.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/base/validation.h"
#include "kernels/deformable_attention/cpu_plan.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"
#include "kernels/roi_pool/cpu_plan.h"

namespace tf_deformable {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

// A size, most often a small one.
int64_t Size(Choices* choices) {
  constexpr int64_t kSizes[] = {1,  2,  3,  4,    5,    7,     8,          0,
                                12, 16, 64, 1000, 4096, 65536, 2147483647, int64_t{1} << 40};
  return kSizes[choices->Between(0, static_cast<int>(std::size(kSizes)) - 1)];
}
int64_t PositiveSize(Choices* choices) { return std::max<int64_t>(Size(choices), 1); }

// What may be wrong with one of the sizes of a shape, or an element of a list attribute.
int64_t OddSize(Choices* choices) {
  constexpr int64_t kOdd[] = {
      kUnknown,         0,         1,    2, 3, 6, 2147483647, 2147483648, (int64_t{1} << 32) + 1,
      int64_t{1} << 61, kHuge - 1, kHuge};
  return kOdd[choices->Between(0, static_cast<int>(std::size(kOdd)) - 1)];
}

void EditShape(Choices* choices, Shape* shape) {
  switch (choices->Between(0, 5)) {
    case 0:
      *shape = Shape();
      break;
    case 1:
      if (shape->known_rank) shape->dims.push_back(OddSize(choices));
      break;
    case 2:
      if (shape->known_rank && !shape->dims.empty()) shape->dims.pop_back();
      break;
    default:
      if (shape->known_rank && !shape->dims.empty()) {
        const int last = static_cast<int>(shape->dims.size()) - 1;
        shape->dims[choices->Between(0, last)] = OddSize(choices);
      }
      break;
  }
}

void EditList(Choices* choices, std::vector<int64_t>* list) {
  switch (choices->Between(0, 3)) {
    case 0:
      list->push_back(OddSize(choices));
      break;
    case 1:
      if (!list->empty()) list->pop_back();
      break;
    default:
      if (list->empty()) break;
      const int64_t value = OddSize(choices);
      const int at = choices->Between(0, static_cast<int>(list->size()) - 1);
      (*list)[at] = choices->Chance(4) ? std::numeric_limits<int64_t>::min() : value;
      break;
  }
}

// Forgets parts of a shape.
void Hide(Choices* choices, Shape* shape) {
  if (choices->Chance(4)) *shape = Shape();
  for (int64_t& dim : shape->dims) {
    if (choices->Chance(3)) dim = kUnknown;
  }
}

bool IsKnown(const Shape& shape) {
  return shape.known_rank && std::all_of(shape.dims.begin(), shape.dims.end(), Known);
}

// The elements of a known shape, or kHuge where a framework would not make such a tensor.
int64_t Elements(const Shape& shape) {
  int64_t elements = 1;
  for (const int64_t dim : shape.dims) {
    elements = Product(elements, dim);
    if (elements == kHuge) break;
  }
  return elements;
}

// Says what is wrong and returns false.
bool Wrong(const std::string& what, const std::vector<Shape*>& shapes) {
  std::printf("%s, of", what.c_str());
  for (const Shape* shape : shapes) std::printf(" %s", ToString(*shape).c_str());
  std::printf("\n");
  return false;
}

// An operator's arguments, parts of them, and what is made of them.
struct Convolution {
  using Geometry = deformable_conv2d::Geometry;
  deformable_conv2d::Arguments arguments;

  explicit Convolution(Choices* choices);
  const char* op() const { return arguments.op; }
  std::vector<Shape*> shapes() {
    std::vector<Shape*> all = {&arguments.inputs, &arguments.filters, &arguments.offsets};
    if (arguments.mask) all.push_back(&*arguments.mask);
    if (arguments.bias) all.push_back(&*arguments.bias);
    if (arguments.grad_output) all.push_back(&*arguments.grad_output);
    return all;
  }
  std::vector<std::vector<int64_t>*> lists() {
    return {&arguments.strides, &arguments.dilations, &arguments.explicit_paddings};
  }
  void EditNumber(Choices*) {}
  Status Parse(Geometry* geometry) const { return deformable_conv2d::Parse(arguments, geometry); }
  static std::vector<int64_t> Sizes(const Geometry& g) {
    return {g.batch,   g.height, g.width,         g.channels,      g.kernel_height, g.kernel_width,
            g.filters, g.groups, g.offset_groups, g.output_height, g.output_width};
  }
  static Shape Output(const Geometry& g) {
    return Shape({g.batch, g.output_height, g.output_width, g.filters});
  }
  template <typename T>
  static std::vector<int64_t> Workspaces(const Geometry& g) {
    return {deformable_conv2d::cpu::ForwardPlan<T>(g, 2).workspace_bytes(),
            deformable_conv2d::cpu::BackwardPlan<T>(g, 2).workspace_bytes()};
  }
};

// Attributes of a convolution, its inputs and, of so many groups, its filters.
deformable_conv2d::Arguments MakeConvolution(Choices* choices, int64_t channels,
                                             int64_t group_channels, int64_t filters) {
  deformable_conv2d::Arguments a;
  a.inputs = Shape({Size(choices), Size(choices), Size(choices), channels});
  a.filters = Shape({PositiveSize(choices), PositiveSize(choices), group_channels, filters});
  a.padding = static_cast<deformable_conv2d::Padding>(choices->Between(0, 2));
  a.strides = {PositiveSize(choices), PositiveSize(choices)};
  a.dilations = {PositiveSize(choices), PositiveSize(choices)};
  if (a.padding == deformable_conv2d::Padding::kExplicit) {
    for (int i = 0; i < 4; ++i) a.explicit_paddings.push_back(Size(choices));
  }
  return a;
}

Convolution::Convolution(Choices* choices) {
  const int64_t groups = PositiveSize(choices), group_channels = PositiveSize(choices);
  const int64_t filters = Product(groups, PositiveSize(choices));
  arguments = MakeConvolution(choices, Product(groups, group_channels), group_channels, filters);
  Geometry g;
  (void)Parse(&g);  // as far as it gets
  const int64_t samples =
      Product(choices->Chance(2) ? groups : 1, Product(g.kernel_height, g.kernel_width));
  arguments.offsets = Shape({g.batch, g.output_height, g.output_width, Product(samples, 2)});
  if (choices->Chance(2)) {
    arguments.mask = Shape({g.batch, g.output_height, g.output_width, samples});
  }
  if (choices->Chance(2)) arguments.bias = Shape({filters});
  if (choices->Chance(2)) {
    arguments.grad_output = Shape({g.batch, g.output_height, g.output_width, filters});
  }
}

struct Branch {
  using Geometry = deformable_conv2d::Geometry;
  deformable_conv2d::Arguments arguments;
  deformable_conv2d::BranchGradientArguments gradient;
  bool has_mask, is_gradient;

  explicit Branch(Choices* choices) {
    arguments.op = "conv2d_branch";
    has_mask = choices->Chance(2);
    is_gradient = choices->Chance(2);
    const int64_t kernel_height = PositiveSize(choices), kernel_width = PositiveSize(choices);
    const int64_t channels = PositiveSize(choices);
    const int64_t samples = Product(PositiveSize(choices), Product(kernel_height, kernel_width));
    const int64_t filters = Product(samples, has_mask ? 3 : 2);
    const char* const op = arguments.op;
    arguments = MakeConvolution(choices, channels, channels, filters);
    arguments.op = op;
    arguments.filters.dims[0] = kernel_height;
    arguments.filters.dims[1] = kernel_width;
    Geometry g;
    (void)deformable_conv2d::ParseBranch(arguments, has_mask, nullptr, &g);
    if (!is_gradient) {
      arguments.bias = Shape({filters});
      return;
    }
    gradient.grad_offsets = Shape({g.batch, g.output_height, g.output_width, Product(samples, 2)});
    if (has_mask) {
      gradient.mask = Shape({g.batch, g.output_height, g.output_width, samples});
      gradient.grad_mask = gradient.mask;
    }
  }
  const char* op() const { return arguments.op; }
  std::vector<Shape*> shapes() {
    std::vector<Shape*> all = {&arguments.inputs, &arguments.filters};
    if (arguments.bias) all.push_back(&*arguments.bias);
    if (is_gradient) all.push_back(&gradient.grad_offsets);
    if (gradient.mask) all.push_back(&*gradient.mask);
    if (gradient.grad_mask) all.push_back(&*gradient.grad_mask);
    return all;
  }
  std::vector<std::vector<int64_t>*> lists() {
    return {&arguments.strides, &arguments.dilations, &arguments.explicit_paddings};
  }
  void EditNumber(Choices*) {}
  Status Parse(Geometry* geometry) const {
    return deformable_conv2d::ParseBranch(arguments, has_mask, is_gradient ? &gradient : nullptr,
                                          geometry);
  }
  static std::vector<int64_t> Sizes(const Geometry& g) { return Convolution::Sizes(g); }
  static Shape Output(const Geometry& g) { return Convolution::Output(g); }
  template <typename T>
  static std::vector<int64_t> Workspaces(const Geometry& g) {
    return {deformable_conv2d::cpu::BranchForwardPlan<T>(g, 2).workspace_bytes(),
            deformable_conv2d::cpu::BranchBackwardPlan<T>(g, 2).workspace_bytes()};
  }
};

struct RoIPool {
  using Geometry = roi_pool::Geometry;
  roi_pool::Arguments arguments;

  explicit RoIPool(Choices* choices) {
    roi_pool::Arguments& a = arguments;
    a.group_size = choices->Chance(2) ? 1 : PositiveSize(choices);
    const int64_t classes = PositiveSize(choices);
    const int64_t depth = Product(classes, PositiveSize(choices));
    const int64_t boxes = Size(choices);
    a.inputs = Shape({Size(choices), Size(choices), Size(choices),
                      Product(Product(a.group_size, a.group_size), depth)});
    a.boxes = Shape({boxes, 4});
    a.box_indices = Shape({boxes});
    a.output_size = {PositiveSize(choices), PositiveSize(choices)};
    if (choices->Chance(2)) {
      a.offsets = Shape({boxes, PositiveSize(choices), PositiveSize(choices), classes, 2});
    }
    if (choices->Chance(2)) a.mask = Shape({boxes, a.output_size[0], a.output_size[1]});
    if (choices->Chance(2)) {
      a.grad_output = Shape({boxes, a.output_size[0], a.output_size[1], depth});
    }
    a.aligned = choices->Chance(2);
    a.samples_per_bin = choices->Between(a.aligned ? 0 : 1, 1024);
  }
  const char* op() const {
    return arguments.group_size == 1 ? "deformable_roi_pool" : "deformable_psroi_pool";
  }
  std::vector<Shape*> shapes() {
    std::vector<Shape*> all = {&arguments.inputs, &arguments.boxes, &arguments.box_indices};
    if (arguments.offsets) all.push_back(&*arguments.offsets);
    if (arguments.mask) all.push_back(&*arguments.mask);
    if (arguments.grad_output) all.push_back(&*arguments.grad_output);
    return all;
  }
  std::vector<std::vector<int64_t>*> lists() { return {&arguments.output_size}; }
  void EditNumber(Choices* choices) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kOdd[] = {
        0, -1, 1e-30f, 3e38f, kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()};
    const float number = kOdd[choices->Between(0, static_cast<int>(std::size(kOdd)) - 1)];
    switch (choices->Between(0, 3)) {
      case 0:
        arguments.spatial_scale = number;
        break;
      case 1:
        arguments.gamma = number;
        break;
      case 2:
        arguments.samples_per_bin = OddSize(choices);
        break;
      case 3:
        arguments.group_size = OddSize(choices);
        break;
    }
  }
  Status Parse(Geometry* geometry) const { return roi_pool::Parse(arguments, geometry); }
  static std::vector<int64_t> Sizes(const Geometry& g) {
    return {g.batch,        g.height, g.width,       g.channels,   g.boxes,  g.pooled_height,
            g.pooled_width, g.depth,  g.part_height, g.part_width, g.classes};
  }
  static Shape Output(const Geometry& g) {
    return Shape({g.boxes, g.pooled_height, g.pooled_width, g.depth});
  }
  template <typename T>
  static std::vector<int64_t> Workspaces(const Geometry& g) {
    return {roi_pool::cpu::ForwardPlan<T>(g, 2).workspace_bytes(),
            roi_pool::cpu::BackwardPlan<T>(g, 2).workspace_bytes()};
  }
};

struct Attention {
  using Geometry = deformable_attention::Geometry;
  deformable_attention::Arguments arguments;

  explicit Attention(Choices* choices) {
    deformable_attention::Arguments& a = arguments;
    const int64_t batch = Size(choices), heads = Size(choices), depth = PositiveSize(choices);
    const int64_t queries = Size(choices), points = Size(choices);
    const int levels = choices->Between(0, 5);
    a.level_sizes.emplace();
    int64_t pixels = 0;
    for (int level = 0; level < levels; ++level) {
      const int64_t height = Size(choices), width = Size(choices);
      a.level_sizes->insert(a.level_sizes->end(), {height, width});
      pixels = std::min(pixels, kHuge / 2) + std::min(Product(height, width), kHuge / 2);
    }
    a.value = Shape({batch, pixels, heads, depth});
    a.spatial_shapes = Shape({levels, 2});
    a.sampling_locations = Shape({batch, queries, heads, levels, points, 2});
    a.attention_weights = Shape({batch, queries, heads, levels, points});
    if (choices->Chance(3)) {
      int64_t all = 0;
      for (int level = 0; level < levels; ++level) {
        a.num_points.push_back(Size(choices));
        all = std::min(all, kHuge / 2) + std::min(a.num_points.back(), kHuge / 2);
      }
      a.sampling_locations = Shape({batch, queries, heads, all, 2});
      a.attention_weights = Shape({batch, queries, heads, all});
    }
    if (choices->Chance(2)) a.grad_output = Shape({batch, queries, Product(heads, depth)});
  }
  const char* op() const { return "multi_scale_deformable_attention"; }
  std::vector<Shape*> shapes() {
    std::vector<Shape*> all = {&arguments.value, &arguments.spatial_shapes,
                               &arguments.sampling_locations, &arguments.attention_weights};
    if (arguments.grad_output) all.push_back(&*arguments.grad_output);
    return all;
  }
  std::vector<std::vector<int64_t>*> lists() { return {&arguments.num_points}; }
  // The elements of a tensor are as many as its shape says, where it is known.
  void EditNumber(Choices* choices) {
    std::vector<int64_t>& sizes = *arguments.level_sizes;
    if (sizes.empty()) return;
    const int at = choices->Between(0, static_cast<int>(sizes.size()) - 1);
    sizes[at] = OddSize(choices);
  }
  Status Parse(Geometry* geometry) const {
    deformable_attention::Arguments a = arguments;
    const Shape sizes({static_cast<int64_t>(a.level_sizes->size() / 2), 2});
    if (a.spatial_shapes.dims != sizes.dims) a.level_sizes.reset();
    return deformable_attention::Parse(a, geometry);
  }
  static std::vector<int64_t> Sizes(const Geometry& g) {
    return {g.batch, g.heads, g.depth, g.queries, g.levels, g.samples};
  }
  static Shape Output(const Geometry& g) {
    return Shape({g.batch, g.queries, Product(g.heads, g.depth)});
  }
  template <typename T>
  static std::vector<int64_t> Workspaces(const Geometry& g) {
    return {deformable_attention::cpu::ForwardPlan<T>(g, 2).workspace_bytes(),
            deformable_attention::cpu::BackwardPlan<T>(g, 2).workspace_bytes()};
  }
};

template <typename Operator>
bool CheckPlans(Operator* call, const typename Operator::Geometry& geometry) {
  // Tensors that fit into memory, with room for the gradients of all of them.
  constexpr int64_t kMostElementsHere = int64_t{1} << 28;
  const Shape output = Operator::Output(geometry);
  std::vector<const Shape*> tensors = {&output};
  for (const Shape* shape : call->shapes()) tensors.push_back(shape);
  int64_t elements = 0;
  for (const Shape* shape : tensors) {
    const int64_t of_shape = Elements(*shape);
    if (of_shape > kMostElementsHere) return true;
    elements += of_shape;
  }
  // As SECURITY.md has it; a bound of many megabytes for what no workload is like. Where one box
  // has all of an output, RoI pooling's gradient keeps three sums for each of its elements.
  constexpr int64_t kMostBytes = int64_t{1} << 28;
  constexpr int64_t kElementBytes = 3 * sizeof(double);
  const auto check = [&](const std::vector<int64_t>& workspaces) {
    for (const int64_t bytes : workspaces) {
      if (bytes < 0 || bytes > kMostBytes + kElementBytes * elements) {
        return Wrong("a workspace of " + std::to_string(bytes) + " bytes", call->shapes());
      }
    }
    return true;
  };
  return check(Operator::template Workspaces<float>(geometry)) &&
         check(Operator::template Workspaces<double>(geometry)) &&
         check(Operator::template Workspaces<Half>(geometry)) &&
         check(Operator::template Workspaces<BFloat16>(geometry));
}

template <typename Operator>
bool Check(Choices* choices) {
  using Geometry = typename Operator::Geometry;
  Operator call(choices);
  for (int edits = choices->Between(0, 2); edits > 0; --edits) {
    const std::vector<Shape*> shapes = call.shapes();
    const std::vector<std::vector<int64_t>*> lists = call.lists();
    const int which = choices->Between(0, static_cast<int>(shapes.size() + lists.size()));
    if (which < static_cast<int>(shapes.size())) {
      EditShape(choices, shapes[which]);
    } else if (which < static_cast<int>(shapes.size() + lists.size())) {
      EditList(choices, lists[which - shapes.size()]);
    } else {
      call.EditNumber(choices);
    }
  }
  Geometry geometry;
  const Status status = call.Parse(&geometry);
  if (!status.ok()) {
    const std::string& message = status.message();
    const bool names = message.rfind(std::string(call.op()) + ": ", 0) == 0;
    if (status.code() == Status::Code::kInvalidArgument && names &&
        message.find("got ") != std::string::npos) {
      return true;
    }
    return Wrong("the message \"" + message + "\"", call.shapes());
  }
  const std::vector<int64_t> sizes = Operator::Sizes(geometry);
  for (const int64_t size : sizes) {
    if (size < kUnknown) return Wrong("a size of " + std::to_string(size), call.shapes());
  }

  Operator partly = call;
  for (Shape* shape : partly.shapes()) Hide(choices, shape);
  Geometry part;
  const Status partly_known = partly.Parse(&part);
  if (!partly_known.ok()) {
    return Wrong("what is right is wrong if partly unknown: " + partly_known.message(),
                 call.shapes());
  }
  const std::vector<int64_t> known = Operator::Sizes(part);
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (Differ(known[i], sizes[i])) {
      return Wrong("size " + std::to_string(i) + ", " + std::to_string(sizes[i]) + ", follows as " +
                       std::to_string(known[i]) + " if partly unknown",
                   call.shapes());
    }
  }

  const std::vector<Shape*> shapes = call.shapes();
  if (!std::all_of(shapes.begin(), shapes.end(), [](const Shape* s) { return IsKnown(*s); })) {
    return true;
  }
  if (!std::all_of(sizes.begin(), sizes.end(), Known)) {
    return Wrong("a size does not follow", call.shapes());
  }
  if constexpr (std::is_same_v<Operator, Attention>) {
    if (static_cast<int64_t>(geometry.maps.size()) != geometry.levels) return true;
  }
  return CheckPlans(&call, geometry);
}

}  // namespace

bool RunGeometryCase(Choices* choices) {
  switch (choices->Between(0, 3)) {
    case 0:
      return Check<Convolution>(choices);
    case 1:
      return Check<RoIPool>(choices);
    case 2:
      return Check<Attention>(choices);
    default:
      return Check<Branch>(choices);
  }
}

}  // namespace tf_deformable
