// Runs the kernels on random shapes and hostile values, every tensor between two guard pages.
//
// What is read or written outside of a tensor ends the process: half of the tensors end where a
// page without access begins, the others begin where one ends. Usage:
//
//   fuzz_kernels FIRST_SEED LAST_SEED [keep FILE | compare FILE | threads]
//   fuzz_kernels workspaces
//
// Results that are kept are compared with those of another instruction set. With `threads` units
// run on several threads at once, for the thread sanitizer; otherwise on one, in reverse order. The
// second form runs nothing: it checks how much memory lopsided shapes would need.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/base/parallel_loop.h"
#include "kernels/cpu/driver.h"
#include "kernels/deformable_attention/cpu_plan.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"
#include "kernels/roi_pool/cpu_plan.h"
#include "pool.h"

namespace {

using namespace tf_deformable;

std::mt19937 random_state;

int Between(int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random_state);
}
bool Chance(int one_in) { return Between(1, one_in) == 1; }

// Runs units in reverse order, each on some worker: no order may be relied on.
class Backwards : public Executor {
 public:
  explicit Backwards(int workers) : workers_(workers) {}
  int num_workers() const override { return workers_; }
  void Run(int64_t units, int64_t, Task task, const void* context) override {
    for (int64_t unit = units; unit-- > 0;) task(context, unit, Between(0, workers_ - 1));
  }

 private:
  int workers_;
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

std::unique_ptr<Pool> pool;  // where units run on threads

std::unique_ptr<Executor> MakeExecutor() {
  if (pool != nullptr) return std::make_unique<Threaded>(Between(2, 8), pool.get());
  return std::make_unique<Backwards>(Between(1, 4));
}

// Memory of exactly so many bytes, with a page without access before or behind it.
class Guarded {
 public:
  explicit Guarded(int64_t bytes, int64_t alignment = 1) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t inner = RoundUp(std::max<int64_t>(bytes, 1), page);
    size_ = inner + 2 * page;
    base_ = static_cast<char*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + page + inner, page, PROT_NONE);
    data_ = base_ + page + (Chance(2) ? inner - RoundUp(bytes, alignment) : 0);
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  char* data() const { return data_; }

 private:
  char* base_;
  char* data_;
  int64_t size_;
};

float Value(float scale, bool hostile) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kHostile[] = {NAN,     kInfinity, -kInfinity, 1e30f, -1e30f,
                                3.4e38f, 3e9f,      -1,         -0.5f};
  if (hostile && Chance(6)) return kHostile[Between(0, std::size(kHostile) - 1)];
  // Nearly normal, and the same on every machine, which logarithms of float are not.
  const uint32_t bits = random_state();
  double sum = -509.5 + random_state() * 0x1p-32;
  for (int i = 0; i < 32; i += 8) sum += bits >> i & 255;
  return static_cast<float>(sum / 148 * scale);
}

void Put(float value, float* to) { *to = value; }
void Put(float value, double* to) { *to = value; }
void Put(float value, BFloat16* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  to->bits = static_cast<uint16_t>(bits >> 16);
}
// Any bits are a number: subnormals and all NaNs among them.
void Put(float value, Half* to) {
  const float scaled = std::isfinite(value) ? std::min(std::fabs(value), 60.0f) * 500 : 31744;
  to->bits = static_cast<uint16_t>(scaled) | (std::signbit(value) ? 0x8000 : 0);
}

template <typename T>
class Tensor {
 public:
  Tensor(int64_t size, float scale = 1, bool hostile = false) : memory_(size * sizeof(T)) {
    for (int64_t i = 0; i < size; ++i) Put(Value(scale, hostile), data() + i);
  }
  T* data() { return reinterpret_cast<T*>(memory_.data()); }
  T* data_if(bool present) { return present ? data() : nullptr; }

 private:
  Guarded memory_;
};

template <typename Plan, typename Work>
void RunPlan(const Plan& plan, const Work& work) {
  Guarded workspace(plan.workspace_bytes(), kWorkspaceAlignment);
  work(workspace.data());
}

double Get(float value) { return value; }
double Get(double value) { return value; }
double Get(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}
double Get(Half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const double sign = value.bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * std::ldexp(exponent > 0 ? 1024 + mantissa : mantissa, std::max(exponent, 1) - 25);
}

// Roundings of a result, and of sums in another order; relative to a tensor's largest number.
template <typename T>
constexpr double kTolerance = 2e-5;
template <>
constexpr double kTolerance<double> = 1e-13;
template <>
constexpr double kTolerance<Half> = 2e-3;
template <>
constexpr double kTolerance<BFloat16> = 1.6e-2;

// Keeps results in a file, or compares them with those there.
class Results {
 public:
  void Open(const char* action, const char* path) {
    compares_ = std::strcmp(action, "compare") == 0;
    file_ = std::fopen(path, compares_ ? "rb" : "wb");
    if (file_ == nullptr) std::exit(2);
  }

  template <typename T>
  void Take(const char* name, T* data, int64_t size) {
    if (file_ == nullptr || data == nullptr) return;
    std::vector<double> got(size), expected(size);
    for (int64_t i = 0; i < size; ++i) got[i] = Get(data[i]);
    if (!compares_) {
      std::fwrite(got.data(), sizeof(double), size, file_);
      return;
    }
    if (std::fread(expected.data(), sizeof(double), size, file_) != static_cast<size_t>(size)) {
      std::exit(2);
    }
    double largest = 1e-30, difference = 0;
    for (int64_t i = 0; i < size; ++i) {
      largest = std::max(largest, std::fabs(expected[i]));
      const double d = std::fabs(got[i] - expected[i]);
      difference = std::max(difference, std::isnan(d) ? INFINITY : d);
    }
    ++compared_;
    worst_ = std::max(worst_, difference / largest / kTolerance<T>);
    if (difference / largest <= kTolerance<T>) return;
    ++wrong_;
    std::printf("seed %d: %s differs by %g of its largest number\n", seed, name,
                difference / largest);
  }

  // Returns whether all were equal.
  bool Report() const {
    if (compares_) {
      std::printf("%d tensors of %s compared, %d differ, by at most %.2f of the tolerance\n",
                  compared_, ToString(SelectedCpuIsa()), wrong_, worst_);
    }
    return wrong_ == 0;
  }

  // Returns whether this was all.
  bool Close() { return file_ == nullptr || std::fclose(file_) == 0; }

  int seed = 0;

 private:
  std::FILE* file_ = nullptr;
  bool compares_ = false;
  int compared_ = 0, wrong_ = 0;
  double worst_ = 0;
} results;

int Divisor(int number) {
  std::vector<int> divisors;
  for (int i = 1; i <= number; ++i) {
    if (number % i == 0) divisors.push_back(i);
  }
  return divisors[Between(0, divisors.size() - 1)];
}

template <typename T>
void ConvolutionCase(bool hostile) {
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
  a.inputs = Shape({Between(0, 3), Between(0, 14), Between(0, 14), channels});
  a.filters = Shape({taps_y, taps_x, group_channels, filters});
  a.strides = {Between(1, 3), Between(1, 3)};
  a.dilations = {Between(1, 3), Between(1, 3)};
  a.padding = static_cast<deformable_conv2d::Padding>(Between(0, 2));
  a.explicit_paddings = {Between(0, 4), Between(0, 4), Between(0, 4), Between(0, 4)};
  deformable_conv2d::Geometry g;
  if (!deformable_conv2d::Parse(a, &g).ok()) return;  // a kernel larger than the map
  const int64_t samples = offset_groups * g.taps();
  a.offsets = Shape({g.batch, g.output_height, g.output_width, 2 * samples});
  g = deformable_conv2d::Geometry();
  if (!deformable_conv2d::Parse(a, &g).ok()) std::abort();

  const int64_t pixels = g.output_pixels();
  const int64_t size = g.batch * g.height * g.width * channels;
  const int64_t filters_size = g.taps() * group_channels * filters;
  Tensor<T> inputs(size, 1, hostile), weights(filters_size), bias(filters);
  Tensor<T> offsets(pixels * samples * 2, 3, hostile), mask(pixels * samples, 1, hostile);
  Tensor<T> output(pixels * filters), grad_output(pixels * filters, 1, hostile);
  Tensor<T> grad_inputs(size), grad_filters(filters_size);
  Tensor<T> grad_offsets(pixels * samples * 2), grad_mask(pixels * samples);
  const std::unique_ptr<Executor> executor = MakeExecutor();
  if (pixels > 0) {
    const deformable_conv2d::cpu::ForwardPlan<T> plan(g, executor->num_workers());
    RunPlan(plan, [&](void* workspace) {
      plan.Run({inputs.data(), weights.data(), offsets.data(), mask.data_if(has_mask),
                bias.data_if(has_bias), output.data()},
               *executor, workspace);
    });
    if (!hostile) results.Take("convolution", output.data(), pixels * filters);
  }
  const deformable_conv2d::cpu::BackwardPlan<T> plan(g, executor->num_workers());
  RunPlan(plan, [&](void* workspace) {
    plan.Run(
        {inputs.data(), weights.data(), offsets.data(), mask.data_if(has_mask), grad_output.data(),
         grad_inputs.data(), grad_filters.data(), grad_offsets.data(), grad_mask.data_if(has_mask)},
        *executor, workspace);
  });
  if (hostile) return;
  results.Take("convolution's grad_inputs", grad_inputs.data(), size);
  results.Take("convolution's grad_filters", grad_filters.data(), filters_size);
  results.Take("convolution's grad_offsets", grad_offsets.data(), pixels * samples * 2);
  results.Take("convolution's grad_mask", grad_mask.data_if(has_mask), pixels * samples);
}

template <typename T>
void BranchCase(bool hostile) {
  using A = ComputeType<T>;
  const bool has_mask = Chance(2);
  const int taps_y = Between(1, 4), taps_x = Between(1, 4);
  const int samples = taps_y * taps_x * Between(1, Chance(8) ? 40 : 4);
  const int filters = samples * (has_mask ? 3 : 2);
  // Some fill vectors, and some are more than a copy has.
  const int channels = Chance(3) ? 16 * Between(1, Chance(4) ? 20 : 3) : Between(1, 40);

  deformable_conv2d::Arguments a;
  a.inputs = Shape({Between(0, 3), Between(0, 14), Between(0, Chance(4) ? 300 : 14), channels});
  a.filters = Shape({taps_y, taps_x, channels, filters});
  a.strides = {Between(1, 3), Between(1, 3)};
  a.dilations = {Between(1, 3), Between(1, 3)};
  a.padding = static_cast<deformable_conv2d::Padding>(Between(0, 2));
  a.explicit_paddings = {Between(0, 4), Between(0, 4), Between(0, 4), Between(0, 4)};
  deformable_conv2d::Geometry g;
  if (!deformable_conv2d::ParseBranch(a, has_mask, nullptr, &g).ok()) return;  // a large kernel

  const int64_t pixels = g.output_pixels();
  const int64_t size = g.batch * g.height * g.width * channels;
  const int64_t filters_size = g.taps() * channels * filters;
  const float largest_mask = static_cast<float>(Between(1, 2));
  Tensor<T> inputs(size, 1, hostile), grad_inputs(size);
  Tensor<A> weights(filters_size, 0.1f), bias(filters), offsets(pixels * samples * 2);
  Tensor<A> mask(pixels * samples), grad_offsets(pixels * samples * 2, 1, hostile);
  Tensor<A> grad_mask(pixels * samples, 1, hostile), grad_filters(filters_size), grad_bias(filters);
  Backwards executor(Between(1, 4));
  const deformable_conv2d::cpu::BranchForwardPlan<T> forward(g, executor.num_workers());
  RunPlan(forward, [&](void* workspace) {
    forward.Run({inputs.data(), weights.data(), bias.data(), largest_mask, offsets.data(),
                 mask.data_if(has_mask)},
                executor, workspace);
  });
  const deformable_conv2d::cpu::BranchBackwardPlan<T> backward(g, executor.num_workers());
  RunPlan(backward, [&](void* workspace) {
    backward.Run(
        {inputs.data(), weights.data(), mask.data_if(has_mask), largest_mask, grad_offsets.data(),
         grad_mask.data_if(has_mask), grad_inputs.data(), grad_filters.data(), grad_bias.data()},
        executor, workspace);
  });
  if (hostile) return;
  results.Take("branch's offsets", offsets.data(), pixels * samples * 2);
  results.Take("branch's mask", mask.data_if(has_mask), pixels * samples);
  results.Take("branch's grad_inputs", grad_inputs.data(), size);
  results.Take("branch's grad_filters", grad_filters.data(), filters_size);
  results.Take("branch's grad_bias", grad_bias.data(), filters);
}

template <typename T>
void RoIPoolCase(bool hostile) {
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

  const int64_t size = g.batch * g.height * g.width * g.channels;
  const int64_t pooled = g.boxes * g.bins() * g.depth;
  const int64_t moved = g.boxes * g.offsets_per_box();
  Tensor<T> inputs(size, 1, hostile), offsets(moved, 1, hostile);
  Tensor<T> mask(g.boxes * g.bins(), 1, hostile), grad_output(pooled, 1, hostile);
  Tensor<T> output(pooled), grad_inputs(size), grad_offsets(moved), grad_mask(g.boxes * g.bins());
  Tensor<ComputeType<T>> corners(4 * boxes, 20, hostile);
  Guarded indices(boxes * sizeof(int32_t));
  auto* const box_indices = reinterpret_cast<int32_t*>(indices.data());
  for (int i = 0; i < boxes; ++i) box_indices[i] = Between(-1, batch - 1);
  const roi_pool::InputTensors<T> tensors = {inputs.data(), corners.data(), box_indices,
                                             offsets.data_if(has_offsets), mask.data_if(has_mask)};
  const std::unique_ptr<Executor> executor = MakeExecutor();
  const roi_pool::cpu::ForwardPlan<T> forward(g, executor->num_workers());
  RunPlan(forward,
          [&](void* workspace) { forward.Run({tensors, output.data()}, *executor, workspace); });
  const roi_pool::cpu::BackwardPlan<T> backward(g, executor->num_workers());
  RunPlan(backward, [&](void* workspace) {
    backward.Run({tensors, grad_output.data(), grad_inputs.data(),
                  grad_offsets.data_if(has_offsets), grad_mask.data_if(has_mask)},
                 *executor, workspace);
  });
  if (hostile) return;
  results.Take("pooling", output.data(), pooled);
  results.Take("pooling's grad_inputs", grad_inputs.data(), size);
  results.Take("pooling's grad_offsets", grad_offsets.data_if(has_offsets), moved);
  results.Take("pooling's grad_mask", grad_mask.data_if(has_mask), g.boxes * g.bins());
}

template <typename T>
void AttentionCase(bool hostile) {
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
    for (int level = 0; level < levels; ++level) a.num_points.push_back(Between(0, points));
    const int64_t all = std::accumulate(a.num_points.begin(), a.num_points.end(), int64_t{0});
    a.sampling_locations = Shape({batch, queries, heads, all, 2});
    a.attention_weights = Shape({batch, queries, heads, all});
  }
  const bool normalized = Chance(2);
  a.coordinates = normalized ? deformable_attention::Coordinates::kNormalized
                             : deformable_attention::Coordinates::kPixels;
  deformable_attention::Geometry g;
  if (!deformable_attention::Parse(a, &g).ok()) std::abort();

  const int64_t size = g.batch * g.pixels * g.channels();
  const int64_t summed = g.batch * g.queries * g.channels();
  const int64_t samples = g.rows() * g.samples;
  Tensor<T> value(size, 1, hostile), locations(samples * 2, normalized ? 1 : 5, hostile);
  Tensor<T> weights(samples, 1, hostile), grad_output(summed, 1, hostile);
  Tensor<T> output(summed), grad_value(size), grad_locations(samples * 2), grad_weights(samples);
  const deformable_attention::InputTensors<T> tensors = {value.data(), locations.data(),
                                                         weights.data()};
  const std::unique_ptr<Executor> executor = MakeExecutor();
  const deformable_attention::cpu::ForwardPlan<T> forward(g, executor->num_workers());
  RunPlan(forward,
          [&](void* workspace) { forward.Run({tensors, output.data()}, *executor, workspace); });
  const deformable_attention::cpu::BackwardPlan<T> backward(g, executor->num_workers());
  RunPlan(backward, [&](void* workspace) {
    backward.Run({tensors, grad_output.data(), grad_value.data(), grad_locations.data(),
                  grad_weights.data()},
                 *executor, workspace);
  });
  if (hostile) return;
  results.Take("attention", output.data(), summed);
  results.Take("attention's grad_value", grad_value.data(), size);
  results.Take("attention's grad_locations", grad_locations.data(), samples * 2);
  results.Take("attention's grad_weights", grad_weights.data(), samples);
}

template <typename T>
void Case(int which, bool hostile) {
  switch (which) {
    case 0:
      ConvolutionCase<T>(hostile);
      break;
    case 1:
      RoIPoolCase<T>(hostile);
      break;
    case 2:
      AttentionCase<T>(hostile);
      break;
    case 3:
      BranchCase<T>(hostile);
      break;
  }
}

// The same of the branch that gives these offsets, which keeps no gradients beside the results.
template <typename T>
bool BranchWorkspaceIsBounded(const char* type, deformable_conv2d::Arguments a,
                              int64_t offset_groups) {
  const std::vector<int64_t>& kernel = a.filters.dims;
  a.filters =
      Shape({kernel[0], kernel[1], a.inputs.dims[3], 3 * offset_groups * kernel[0] * kernel[1]});
  deformable_conv2d::Geometry g;
  if (!deformable_conv2d::ParseBranch(a, true, nullptr, &g).ok()) std::abort();
  constexpr int64_t kMost = 16'000'000;
  const int64_t forward = deformable_conv2d::cpu::BranchForwardPlan<T>(g, 2).workspace_bytes();
  const int64_t backward = deformable_conv2d::cpu::BranchBackwardPlan<T>(g, 2).workspace_bytes();
  const bool bounded = forward >= 0 && forward <= kMost && backward >= 0 && backward <= kMost;
  if (!bounded) {
    std::printf("branch, %s, inputs %s, filters %s: %.1f MB, backward %.1f MB\n", type,
                ToString(a.inputs).c_str(), ToString(a.filters).c_str(), 1e-6 * forward,
                1e-6 * backward);
  }
  return bounded;
}

// What two threads need of memory: little forward, and backward little more than the gradients. Of
// the inputs' gradient in 16 bits the sums are held in part: those of a channel block for each
// thread, and of an offset group those that wait for its other blocks.
// Returns whether they need no more.
template <typename T>
bool WorkspaceIsBounded(const char* type, const Shape& inputs, const Shape& filters,
                        int64_t offset_groups) {
  deformable_conv2d::Arguments a;
  a.inputs = inputs;
  a.filters = filters;
  a.strides = a.dilations = {1, 1};
  const int64_t samples = offset_groups * filters.dims[0] * filters.dims[1];
  a.offsets = Shape({inputs.dims[0], inputs.dims[1], inputs.dims[2], 2 * samples});
  deformable_conv2d::Geometry g;
  if (!deformable_conv2d::Parse(a, &g).ok()) std::abort();
  int64_t gradients = 0;
  for (const Shape& shape : {a.inputs, a.filters, a.offsets}) {
    int64_t size = sizeof(ComputeType<T>);
    for (int64_t dim : shape.dims) size *= dim;
    gradients += size;
  }
  if (sizeof(T) < sizeof(ComputeType<T>)) {
    constexpr int64_t kBlockChannels = 128;
    const int64_t blocks = 2 * std::min(g.channels, kBlockChannels) * g.height * g.width;
    const int64_t unfinished = 3 * g.taps() * g.output_size();
    const int64_t all = g.batch * g.height * g.width * g.channels;
    gradients = std::max(kRoundedBytes, 4 * std::min(blocks + unfinished, all));
  }
  constexpr int64_t kMost = 16'000'000;
  if (!BranchWorkspaceIsBounded<T>(type, a, offset_groups)) return false;
  const int64_t forward = deformable_conv2d::cpu::ForwardPlan<T>(g, 2).workspace_bytes();
  const int64_t backward = deformable_conv2d::cpu::BackwardPlan<T>(g, 2).workspace_bytes();
  const bool bounded =
      forward >= 0 && forward <= kMost && backward >= 0 && backward <= kMost + gradients;
  if (!bounded) {
    std::printf("%s, inputs %s, filters %s, %d offset groups: %.1f MB, backward %.1f MB\n", type,
                ToString(inputs).c_str(), ToString(filters).c_str(),
                static_cast<int>(offset_groups), 1e-6 * forward, 1e-6 * backward);
  }
  return bounded;
}

// The same for attention, of maps of one row.
template <typename T>
bool AttentionWorkspaceIsBounded(const char* type, int64_t batch, int64_t pixels, int64_t heads,
                                 int64_t depth, int64_t queries, int64_t points) {
  deformable_attention::Arguments a;
  a.value = Shape({batch, pixels, heads, depth});
  a.spatial_shapes = Shape({1, 2});
  a.level_sizes = {1, pixels};
  a.sampling_locations = Shape({batch, queries, heads, 1, points, 2});
  a.attention_weights = Shape({batch, queries, heads, 1, points});
  deformable_attention::Geometry g;
  if (!deformable_attention::Parse(a, &g).ok()) std::abort();
  constexpr int64_t kMost = 8'000'000;
  const int64_t gradients = batch * (pixels * heads * depth + queries * heads * points * 3) *
                            static_cast<int64_t>(sizeof(ComputeType<T>));
  const int64_t forward = deformable_attention::cpu::ForwardPlan<T>(g, 2).workspace_bytes();
  const int64_t backward = deformable_attention::cpu::BackwardPlan<T>(g, 2).workspace_bytes();
  const bool rounds = sizeof(T) < sizeof(ComputeType<T>);
  const bool bounded = forward >= 0 && forward <= kMost && backward >= 0 &&
                       backward <= kMost + (rounds ? gradients : 0);
  if (!bounded) {
    std::printf("%s, value %s, %d queries, %d points: %.1f MB, backward %.1f MB\n", type,
                ToString(a.value).c_str(), static_cast<int>(queries), static_cast<int>(points),
                1e-6 * forward, 1e-6 * backward);
  }
  return bounded;
}

bool WorkspacesAreBounded() {
  bool bounded = true;
  const auto check_attention = [&](int64_t batch, int64_t pixels, int64_t heads, int64_t depth,
                                   int64_t queries, int64_t points) {
    const auto check = [&](auto is_bounded, const char* type) {
      bounded &= is_bounded(type, batch, pixels, heads, depth, queries, points);
    };
    check(AttentionWorkspaceIsBounded<float>, "float");
    check(AttentionWorkspaceIsBounded<double>, "double");
    check(AttentionWorkspaceIsBounded<BFloat16>, "bfloat16");
  };
  check_attention(2, 20197, 8, 32, 20197, 16);  // the encoder of Deformable DETR
  check_attention(1, 100000, 1, 65536, 1000, 4);
  check_attention(1, 64, 65536, 1, 64, 9);
  check_attention(4096, 1, 1, 256, 1, 4096);
  check_attention(1, 100000, 1, 32, 100000, 961);
  const auto check = [&](std::vector<int64_t> inputs, std::vector<int64_t> filters,
                         int64_t offset_groups) {
    const Shape x(std::move(inputs)), w(std::move(filters));
    bounded &= WorkspaceIsBounded<float>("float", x, w, offset_groups);
    bounded &= WorkspaceIsBounded<double>("double", x, w, offset_groups);
    bounded &= WorkspaceIsBounded<BFloat16>("bfloat16", x, w, offset_groups);
  };
  check({1, 38, 63, 512}, {3, 3, 512, 512}, 4);
  check({4, 64, 64, 256}, {3, 3, 256, 256}, 1);
  check({1, 800, 1344, 256}, {3, 3, 256, 256}, 1);
  check({16, 200, 336, 64}, {3, 3, 64, 64}, 1);
  check({4096, 1, 1, 64}, {3, 3, 64, 64}, 1);
  check({1, 1, 1, 65536}, {3, 3, 65536, 1}, 1);
  check({1, 8, 8, 1}, {1, 1, 1, 65536}, 1);
  check({1, 8, 8, 65536}, {3, 3, 1, 65536}, 1);  // depthwise
  check({1, 8, 8, 4096}, {31, 31, 1, 4096}, 1);  // depthwise
  check({1, 32, 32, 3}, {31, 31, 3, 1024}, 1);
  check({1, 32, 32, 512}, {31, 31, 512, 512}, 1);
  check({1, 8, 8, 4096}, {3, 3, 2048, 64}, 4096);  // 2 groups
  check({1, 8, 8, 8192}, {3, 3, 2, 4096}, 4096);   // 4096 groups
  check({0, 100000, 100000, 64}, {1, 1, 64, 8}, 1);
  return bounded;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "workspaces") == 0) return WorkspacesAreBounded() ? 0 : 1;
  if (argc == 4 && std::strcmp(argv[3], "threads") == 0) {
    pool = std::make_unique<Pool>(7);
  } else if (argc == 5) {
    results.Open(argv[3], argv[4]);
  } else if (argc != 3) {
    return 2;
  }
  const int last = std::atoi(argv[2]);
  for (int seed = std::atoi(argv[1]); seed < last; ++seed) {
    std::fprintf(stderr, "%d\r", seed);  // the last one seen is the one that failed
    random_state.seed(seed);
    results.seed = seed;
    const int which = Between(0, 3);
    const bool hostile = Chance(2);
    switch (seed % 4) {
      case 0:
        Case<float>(which, hostile);
        break;
      case 1:
        Case<double>(which, hostile);
        break;
      case 2:
        Case<Half>(which, hostile);
        break;
      case 3:
        Case<BFloat16>(which, hostile);
        break;
    }
  }
  pool.reset();
  if (!results.Close() || !results.Report()) return 1;
  std::puts("all cases ran");
}
