#include "kernel_cases.h"

#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "guarded_tensor.h"
#include "kernels/base/parallel_loop.h"
#include "kernels/deformable_attention/cpu_plan.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"
#include "kernels/roi_pool/cpu_plan.h"
#include "scalar_operators.h"

namespace tf_deformable {
namespace {

// Runs units in reverse order, each on some worker: no order may be relied on.
class Backwards : public Executor {
 public:
  Backwards(int workers, uint32_t seed) : workers_(workers), noise_(seed) {}
  int num_workers() const override { return workers_; }
  void Run(int64_t units, int64_t, Task task, const void* context) override {
    for (int64_t unit = units; unit-- > 0;) {
      task(context, unit, static_cast<int>(noise_() % workers_));
    }
  }

 private:
  int workers_;
  std::minstd_rand noise_;
};

// Runs units at once, each on some thread.
class Threaded : public Executor {
 public:
  Threaded(int workers, Pool* pool) : workers_(workers), pool_(pool) {}
  int num_workers() const override { return workers_; }
  void Run(int64_t units, int64_t, Task task, const void* context) override {
    ParallelLoop(units, workers_, task, context,
                 [this](std::function<void()> work) { pool_->Schedule(std::move(work)); });
  }

 private:
  int workers_;
  Pool* pool_;
};

// So many multiply-adds of a case are worth their time, under sanitizers too.
constexpr int64_t kMostProducts = int64_t{1} << 26;

// Which values are NaN, infinite or huge.
enum class Hostility { kNone, kPositions, kAll };

// The cases of one element type.
template <typename T>
class Cases {
 public:
  using A = ComputeType<T>;

  Cases(Choices* choices, Pool* pool, Results* results, Hostility hostility)
      : choices_(choices), pool_(pool), results_(results), hostility_(hostility) {}

  void Convolution();
  void Branch();
  void RoIPool();
  void Attention();

 private:
  int Between(int low, int high) { return choices_->Between(low, high); }
  bool Chance(int one_in) { return choices_->Chance(one_in); }
  int Divisor(int number);

  // Takes as much of the choices for a pool as for none, so that the results can be compared.
  std::unique_ptr<Executor> MakeExecutor() {
    const int workers = Between(1, 4);
    const uint32_t seed = choices_->Noise();
    if (pool_ != nullptr) return std::make_unique<Threaded>(2 * workers, pool_);
    return std::make_unique<Backwards>(workers, seed);
  }

  Tensor<T> Features(int64_t size) { return Tensor<T>(choices_, size, {1, AllHostile()}); }
  // Offsets, boxes, locations: multiples of `step` where an input says them.
  template <typename E>
  Tensor<E> Positions(int64_t size, float scale, float step) {
    return Tensor<E>(choices_, size, {scale, hostility_ != Hostility::kNone, step});
  }
  bool AllHostile() const { return hostility_ == Hostility::kAll; }

  // Of values that are hostile sums may overflow on the way, in one order and not in another.
  bool Checks() const { return !AllHostile(); }
  template <typename E>
  void Take(const char* name, const Tensor<E>& tensor, bool present = true) {
    if (hostility_ == Hostility::kNone) {
      results_->Take(name, tensor.data_if(present), tensor.size());
    }
  }

  // With S, offsets and masks (locations and weights) are of that type.
  template <typename S>
  void ConvolutionOf();
  void ChooseTaps(deformable_conv2d::Arguments* a);
  template <typename S>
  void RoIPoolOf();
  template <typename S>
  void AttentionOf();

  Choices* choices_;
  Pool* pool_;
  Results* results_;
  Hostility hostility_;
};

template <typename T>
int Cases<T>::Divisor(int number) {
  std::vector<int> divisors;
  for (int i = 1; i <= number; ++i) {
    if (number % i == 0) divisors.push_back(i);
  }
  return divisors[Between(0, static_cast<int>(divisors.size()) - 1)];
}

template <typename T>
void Cases<T>::Convolution() {
  if (Chance(2)) return ConvolutionOf<A>();
  ConvolutionOf<T>();
}

template <typename T>
void Cases<T>::ChooseTaps(deformable_conv2d::Arguments* a) {
  a->dilations = {Between(1, 3), Between(1, 3)};
  a->padding = static_cast<deformable_conv2d::Padding>(Between(0, 2));
  a->explicit_paddings = {Between(0, 4), Between(0, 4), Between(0, 4), Between(0, 4)};
  // A few, of what is chosen anyway (a choice more would be another byte of the inputs that are
  // kept): beyond what float counts, and padded so that a kernel of two rows fits, one of them on
  // the map.
  if (a->dilations[0] != 3 || a->explicit_paddings[3] != 4) return;
  constexpr int64_t kFar = (int64_t{1} << 31) - 1;
  a->dilations[0] = a->explicit_paddings[a->strides[0] % 2] = kFar;
}

template <typename T>
template <typename S>
void Cases<T>::ConvolutionOf() {
  int groups = Between(1, 4);
  int group_channels = Between(1, Chance(2) ? 40 : 5),
      group_filters = Between(1, Chance(2) ? 40 : 5);
  if (Chance(5)) {  // depthwise
    groups = Between(2, 70);
    group_channels = group_filters = 1;
  } else if (Chance(40)) {  // more than a panel
    groups = 1;
    group_channels = Between(257, 600);
  }
  const int channels = groups * group_channels, filters = groups * group_filters;
  const int taps_y = Between(1, 4), taps_x = Between(1, 4);
  int offset_groups = Divisor(channels);
  if (offset_groups * taps_y * taps_x > 2000) offset_groups = 1;
  const bool has_mask = Chance(2), has_bias = Chance(2);

  deformable_conv2d::Arguments a;
  // Some have more pixels than one tile; a few so many that their gradients are split, or are
  // summed and rounded in parts.
  a.inputs = Shape({Between(0, 3), Between(0, 14), Between(0, Chance(4) ? 90 : 14), channels});
  if (a.inputs.dim(2) > 80) a.inputs.dims[1] *= 6;
  a.filters = Shape({taps_y, taps_x, group_channels, filters});
  a.strides = {Between(1, 3), Between(1, 3)};
  ChooseTaps(&a);
  deformable_conv2d::Geometry g;
  if (!deformable_conv2d::Parse(a, &g).ok()) return;  // a kernel larger than the map
  const int64_t samples = offset_groups * g.taps();
  a.offsets = Shape({g.batch, g.output_height, g.output_width, 2 * samples});
  g = deformable_conv2d::Geometry();
  if (!deformable_conv2d::Parse(a, &g).ok()) std::abort();

  const int64_t pixels = g.output_pixels();
  const int64_t filters_size = g.taps() * group_channels * filters;
  if (pixels * filters_size > kMostProducts) return;
  const auto offsets = Positions<S>(pixels * samples * 2, 3, 0.25f);
  const Tensor<S> mask(choices_, pixels * samples, {1, AllHostile()});
  const auto inputs = Features(g.batch * g.height * g.width * channels);
  const Tensor<T> weights(choices_, filters_size), bias(choices_, filters);
  const auto grad_output = Features(pixels * filters);
  const Tensor<T> output(choices_, pixels * filters), grad_inputs(choices_, inputs.size());
  const Tensor<T> grad_filters(choices_, filters_size);
  const Tensor<S> grad_offsets(choices_, offsets.size()), grad_mask(choices_, mask.size());
  const std::unique_ptr<Executor> executor = MakeExecutor();
  if (pixels > 0) {
    const deformable_conv2d::cpu::ForwardPlan<T> plan(g, executor->num_workers());
    RunPlan(choices_, plan, [&](void* workspace) {
      plan.Run({inputs.data(), weights.data(), offsets.data(), mask.data_if(has_mask),
                bias.data_if(has_bias), output.data()},
               *executor, workspace);
    });
    Take("convolution", output);
  }
  const deformable_conv2d::cpu::BackwardPlan<T> plan(g, executor->num_workers());
  RunPlan(choices_, plan, [&](void* workspace) {
    plan.Run(
        {inputs.data(), weights.data(), offsets.data(), mask.data_if(has_mask), grad_output.data(),
         grad_inputs.data(), grad_filters.data(), grad_offsets.data(), grad_mask.data_if(has_mask)},
        *executor, workspace);
  });
  Take("convolution's grad_inputs", grad_inputs);
  Take("convolution's grad_filters", grad_filters);
  Take("convolution's grad_offsets", grad_offsets);
  Take("convolution's grad_mask", grad_mask, has_mask);
  if (!Checks()) return;
  const scalar::Convolution expected = scalar::Convolve<A>(
      g, inputs.numbers(), weights.numbers(), offsets.numbers(), mask.numbers_if(has_mask),
      bias.numbers_if(has_bias), grad_output.numbers());
  results_->Check("convolution", output.data(), expected.output);
  results_->Check("convolution's grad_inputs", grad_inputs.data(), expected.grad_inputs);
  results_->Check("convolution's grad_filters", grad_filters.data(), expected.grad_filters);
  results_->Check("convolution's grad_offsets", grad_offsets.data(), expected.grad_offsets);
  results_->Check("convolution's grad_mask", grad_mask.data(), expected.grad_mask);
}

template <typename T>
void Cases<T>::Branch() {
  const bool has_mask = Chance(2);
  const int taps_y = Between(1, 4), taps_x = Between(1, 4);
  const int samples = taps_y * taps_x * Between(1, Chance(4) ? 40 : 4);
  const int filters = samples * (has_mask ? 3 : 2);
  // Some fill vectors, some are more than a copy has, and with many filters there are several
  // blocks.
  const int channels = Chance(2) ? 16 * Between(1, Chance(3) ? 20 : 3) : Between(1, 40);

  deformable_conv2d::Arguments a;
  a.inputs = Shape({Between(0, 3), Between(0, 14), Between(0, Chance(4) ? 300 : 14), channels});
  a.filters = Shape({taps_y, taps_x, channels, filters});
  a.strides = {Between(1, 3), Between(1, 3)};
  ChooseTaps(&a);
  deformable_conv2d::Geometry g;
  if (!deformable_conv2d::ParseBranch(a, has_mask, nullptr, &g).ok()) return;  // a large kernel

  const int64_t pixels = g.output_pixels();
  const int64_t filters_size = g.taps() * channels * filters;
  if (pixels * filters_size > kMostProducts) return;
  const float largest_mask = static_cast<float>(Between(1, 2));
  const auto inputs = Features(g.batch * g.height * g.width * channels);
  const Tensor<T> grad_inputs(choices_, inputs.size());
  const Tensor<A> weights(choices_, filters_size, {0.1f}), bias(choices_, filters);
  const Tensor<A> offsets(choices_, pixels * samples * 2), mask(choices_, pixels * samples);
  const Tensor<A> grad_offsets(choices_, offsets.size(), {1, AllHostile()});
  const Tensor<A> grad_mask(choices_, mask.size(), {1, AllHostile()});
  const Tensor<A> grad_filters(choices_, filters_size), grad_bias(choices_, filters);
  const std::unique_ptr<Executor> executor = MakeExecutor();
  const deformable_conv2d::cpu::BranchForwardPlan<T> forward(g, executor->num_workers());
  RunPlan(choices_, forward, [&](void* workspace) {
    forward.Run({inputs.data(), weights.data(), bias.data(), largest_mask, offsets.data(),
                 mask.data_if(has_mask)},
                *executor, workspace);
  });
  const deformable_conv2d::cpu::BranchBackwardPlan<T> backward(g, executor->num_workers());
  RunPlan(choices_, backward, [&](void* workspace) {
    backward.Run(
        {inputs.data(), weights.data(), mask.data_if(has_mask), largest_mask, grad_offsets.data(),
         grad_mask.data_if(has_mask), grad_inputs.data(), grad_filters.data(), grad_bias.data()},
        *executor, workspace);
  });
  Take("branch's offsets", offsets);
  Take("branch's mask", mask, has_mask);
  Take("branch's grad_inputs", grad_inputs);
  Take("branch's grad_filters", grad_filters);
  Take("branch's grad_bias", grad_bias);
  if (!Checks()) return;
  const scalar::Branch expected = scalar::PredictOffsets(g, inputs.numbers(), weights.numbers(),
                                                         bias.numbers(), largest_mask, has_mask);
  results_->Check("branch's offsets", offsets.data(), expected.offsets);
  results_->Check("branch's mask", mask.data(), expected.mask);
  const scalar::BranchGradients gradients = scalar::PredictOffsetsGradients(
      g, inputs.numbers(), weights.numbers(), mask.numbers_if(has_mask), largest_mask,
      grad_offsets.numbers(), grad_mask.numbers_if(has_mask));
  results_->Check("branch's grad_inputs", grad_inputs.data(), gradients.grad_inputs);
  results_->Check("branch's grad_filters", grad_filters.data(), gradients.grad_filters);
  results_->Check("branch's grad_bias", grad_bias.data(), gradients.grad_bias);
}

template <typename T>
void Cases<T>::RoIPool() {
  if (Chance(2)) return RoIPoolOf<A>();
  RoIPoolOf<T>();
}

template <typename T>
template <typename S>
void Cases<T>::RoIPoolOf() {
  const int batch = Between(0, 3), boxes = Between(0, 9), group_size = Between(1, 4);
  const int classes = Between(1, Chance(2) ? 25 : 4);
  const int depth = classes * Between(1, Chance(3) ? 70 : 4);
  const bool has_offsets = !Chance(4), has_mask = Chance(2);

  roi_pool::Arguments a;
  a.inputs = Shape({batch, Between(0, 12), Between(0, 12), group_size * group_size * depth});
  a.boxes = Shape({boxes, 4});
  a.box_indices = Shape({boxes});
  a.output_size = {Between(1, 5), Between(1, 5)};
  if (has_offsets) a.offsets = Shape({boxes, Between(1, 5), Between(1, 5), classes, 2});
  a.group_size = group_size;
  a.spatial_scale = Chance(2) ? 1 : 0.37f;
  a.aligned = Chance(2);
  a.samples_per_bin = Between(a.aligned ? 0 : 1, 10);
  a.gamma = 0.3f;
  roi_pool::Geometry g;
  if (!roi_pool::Parse(a, &g).ok()) std::abort();

  const int64_t pooled = g.boxes * g.bins() * g.depth;
  const int64_t moved = has_offsets ? g.boxes * g.offsets_per_box() : 0;
  const auto corners = Positions<A>(4 * boxes, 20, 0.25f);
  const auto offsets = Positions<S>(moved, 1, 0.125f);
  const auto inputs = Features(g.batch * g.height * g.width * g.channels);
  const Tensor<S> mask(choices_, g.boxes * g.bins(), {1, AllHostile()});
  const auto grad_output = Features(pooled);
  const Tensor<T> output(choices_, pooled), grad_inputs(choices_, inputs.size());
  const Tensor<S> grad_offsets(choices_, moved), grad_mask(choices_, mask.size());
  const Guarded indices(choices_, boxes * static_cast<int64_t>(sizeof(int32_t)), 1);
  auto* const box_indices = reinterpret_cast<int32_t*>(indices.data());
  for (int i = 0; i < boxes; ++i) {
    box_indices[i] = static_cast<int32_t>(choices_->Noise() % (batch + 1)) - 1;
  }
  if (!roi_pool::CheckBoxIndices(g, box_indices).ok()) std::abort();
  const roi_pool::InputTensors<T> tensors = {inputs.data(), corners.data(), box_indices,
                                             offsets.data_if(has_offsets), mask.data_if(has_mask)};
  const std::unique_ptr<Executor> executor = MakeExecutor();
  const roi_pool::cpu::ForwardPlan<T> forward(g, executor->num_workers());
  RunPlan(choices_, forward,
          [&](void* workspace) { forward.Run({tensors, output.data()}, *executor, workspace); });
  const roi_pool::cpu::BackwardPlan<T> backward(g, executor->num_workers());
  RunPlan(choices_, backward, [&](void* workspace) {
    backward.Run({tensors, grad_output.data(), grad_inputs.data(),
                  grad_offsets.data_if(has_offsets), grad_mask.data_if(has_mask)},
                 *executor, workspace);
  });
  Take("pooling", output);
  Take("pooling's grad_inputs", grad_inputs);
  Take("pooling's grad_offsets", grad_offsets, has_offsets);
  Take("pooling's grad_mask", grad_mask, has_mask);
  if (!Checks()) return;
  const scalar::RoIPooling expected = scalar::PoolRoIs<A>(
      g, inputs.numbers(), std::vector<A>(corners.data(), corners.data() + corners.size()),
      box_indices, offsets.numbers(), mask.numbers_if(has_mask), grad_output.numbers());
  if (expected.rounding_decides) return;
  results_->Check("pooling", output.data(), expected.output);
  results_->Check("pooling's grad_inputs", grad_inputs.data(), expected.grad_inputs);
  results_->Check("pooling's grad_mask", grad_mask.data(), expected.grad_mask);
  results_->Check("pooling's grad_offsets", grad_offsets.data(), expected.grad_offsets);
}

template <typename T>
void Cases<T>::Attention() {
  if (Chance(2)) return AttentionOf<A>();
  AttentionOf<T>();
}

template <typename T>
template <typename S>
void Cases<T>::AttentionOf() {
  const int batch = Between(0, 3), heads = Between(1, 9), queries = Between(0, 20);
  const int depth = Between(1, Chance(3) ? 300 : 40);
  const int levels = Between(0, 5), points = Between(0, Chance(10) ? 90 : 5);
  deformable_attention::Arguments a;
  a.level_sizes.emplace();
  int pixels = 0;
  for (int level = 0; level < levels; ++level) {
    const int height = Between(0, 9), width = Between(0, 9);
    a.level_sizes->insert(a.level_sizes->end(), {height, width});
    pixels += height * width;
  }
  a.value = Shape({batch, pixels, heads, depth});
  a.spatial_shapes = Shape({levels, 2});
  a.sampling_locations = Shape({batch, queries, heads, levels, points, 2});
  a.attention_weights = Shape({batch, queries, heads, levels, points});
  if (levels > 0 && Chance(3)) {  // points of each level
    int64_t all = 0;
    for (int level = 0; level < levels; ++level) {
      a.num_points.push_back(Between(0, points));
      all += a.num_points.back();
    }
    a.sampling_locations = Shape({batch, queries, heads, all, 2});
    a.attention_weights = Shape({batch, queries, heads, all});
  }
  const bool normalized = Chance(2);
  a.coordinates = normalized ? deformable_attention::Coordinates::kNormalized
                             : deformable_attention::Coordinates::kPixels;
  deformable_attention::Geometry g;
  if (!deformable_attention::Parse(a, &g).ok()) std::abort();

  const int64_t summed = g.batch * g.queries * g.channels();
  const int64_t samples = g.rows() * g.samples;
  const auto locations =
      Positions<S>(samples * 2, normalized ? 1 : 5, normalized ? 1 / 32.0f : 0.25f);
  const auto value = Features(g.batch * g.pixels * g.channels());
  const Tensor<S> weights(choices_, samples, {1, AllHostile()});
  const auto grad_output = Features(summed);
  const Tensor<T> output(choices_, summed), grad_value(choices_, value.size());
  const Tensor<S> grad_locations(choices_, samples * 2), grad_weights(choices_, samples);
  const deformable_attention::InputTensors<T> tensors = {value.data(), locations.data(),
                                                         weights.data()};
  const std::unique_ptr<Executor> executor = MakeExecutor();
  const deformable_attention::cpu::ForwardPlan<T> forward(g, executor->num_workers());
  RunPlan(choices_, forward,
          [&](void* workspace) { forward.Run({tensors, output.data()}, *executor, workspace); });
  const deformable_attention::cpu::BackwardPlan<T> backward(g, executor->num_workers());
  RunPlan(choices_, backward, [&](void* workspace) {
    backward.Run({tensors, grad_output.data(), grad_value.data(), grad_locations.data(),
                  grad_weights.data()},
                 *executor, workspace);
  });
  Take("attention", output);
  Take("attention's grad_value", grad_value);
  Take("attention's grad_locations", grad_locations);
  Take("attention's grad_weights", grad_weights);
  if (!Checks()) return;
  const scalar::Attention expected = scalar::Attend<A>(g, value.numbers(), locations.numbers(),
                                                       weights.numbers(), grad_output.numbers());
  results_->Check("attention", output.data(), expected.output);
  results_->Check("attention's grad_value", grad_value.data(), expected.grad_value);
  results_->Check("attention's grad_locations", grad_locations.data(), expected.grad_locations);
  results_->Check("attention's grad_weights", grad_weights.data(), expected.grad_weights);
}

template <typename T>
void RunCaseOf(int which, Choices* choices, Pool* pool, Results* results, Hostility hostility) {
  Cases<T> cases(choices, pool, results, hostility);
  switch (which) {
    case 0:
      return cases.Convolution();
    case 1:
      return cases.RoIPool();
    case 2:
      return cases.Attention();
    case 3:
      return cases.Branch();
  }
}

}  // namespace

void RunKernelCase(Choices* choices, Pool* pool, Results* results) {
  const int which = choices->Between(0, 3);
  const auto hostility = static_cast<Hostility>(choices->Between(0, 2));
  switch (choices->Between(0, 3)) {
    case 0:
      return RunCaseOf<float>(which, choices, pool, results, hostility);
    case 1:
      return RunCaseOf<double>(which, choices, pool, results, hostility);
    case 2:
      return RunCaseOf<Half>(which, choices, pool, results, hostility);
    case 3:
      return RunCaseOf<BFloat16>(which, choices, pool, results, hostility);
  }
}

}  // namespace tf_deformable
