// Calls the kernels some times on fixed shapes, without TensorFlow, so that a tool can count their
// instructions in a second or two. Usage: instructions OPERATOR forward|backward CALLS
//
// Linked with the objects of cc/kernels (see instructions.py).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels/deformable_attention/cpu_plan.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"
#include "kernels/roi_pool/cpu_plan.h"

namespace {

using namespace tf_deformable;

class Serial : public Executor {
 public:
  int num_workers() const override { return 1; }
  void Run(int64_t units, int64_t, Task task, const void* context) override {
    for (int64_t unit = 0; unit < units; ++unit) task(context, unit, 0);
  }
};

// Numbers in [-1, 1), the same in every run and with every library.
std::vector<float> Random(int64_t size, uint32_t state) {
  std::vector<float> numbers(size);
  for (float& number : numbers) {
    state = state * 1664525u + 1013904223u;
    number = static_cast<float>(state >> 8) / (1 << 23) - 1;
  }
  return numbers;
}

void Fail(const char* reason) {
  std::fprintf(stderr, "instructions: %s\n", reason);
  std::exit(2);
}

template <typename Plan, typename Work>
void Call(const Plan& plan, int calls, const Work& work) {
  constexpr std::align_val_t kAlignment{64};
  void* const workspace = ::operator new(plan.workspace_bytes(), kAlignment);
  Serial executor;
  for (int i = 0; i < calls; ++i) work(executor, workspace);
  ::operator delete(workspace, kAlignment);
}

void DeformableConv2D(bool backward, int calls) {
  constexpr int64_t kSize = 16, kChannels = 48, kTaps = 9;
  constexpr int64_t kPixels = kSize * kSize;
  deformable_conv2d::Arguments arguments;
  arguments.inputs = Shape({1, kSize, kSize, kChannels});
  arguments.filters = Shape({3, 3, kChannels, kChannels});
  arguments.offsets = Shape({1, kSize, kSize, kTaps * 2});
  arguments.strides = arguments.dilations = {1, 1};
  deformable_conv2d::Geometry geometry;
  const Status status = deformable_conv2d::Parse(arguments, &geometry);
  if (!status.ok()) Fail(status.message().c_str());

  const std::vector<float> inputs = Random(kPixels * kChannels, 1);
  const std::vector<float> filters = Random(kTaps * kChannels * kChannels, 2);
  std::vector<float> offsets = Random(kPixels * kTaps * 2, 3);
  for (float& offset : offsets) offset *= 3;
  std::vector<float> output = Random(kPixels * kChannels, 4);
  if (!backward) {
    const deformable_conv2d::cpu::ForwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run({inputs.data(), filters.data(), offsets.data(), nullptr, nullptr, output.data()},
               executor, workspace);
    });
  } else {
    std::vector<float> grad_inputs(inputs.size()), grad_filters(filters.size());
    std::vector<float> grad_offsets(offsets.size());
    const deformable_conv2d::cpu::BackwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run({inputs.data(), filters.data(), offsets.data(), nullptr, output.data(),
                grad_inputs.data(), grad_filters.data(), grad_offsets.data(), nullptr},
               executor, workspace);
    });
  }
}

// The branch of a modulated layer.
void Conv2DBranch(bool backward, int calls) {
  constexpr int64_t kSize = 16, kChannels = 48, kTaps = 9;
  constexpr int64_t kPixels = kSize * kSize, kFilters = 3 * kTaps;
  deformable_conv2d::Arguments arguments;
  arguments.inputs = Shape({1, kSize, kSize, kChannels});
  arguments.filters = Shape({3, 3, kChannels, kFilters});
  arguments.strides = arguments.dilations = {1, 1};
  deformable_conv2d::Geometry geometry;
  const Status status = deformable_conv2d::ParseBranch(arguments, true, nullptr, &geometry);
  if (!status.ok()) Fail(status.message().c_str());

  const std::vector<float> inputs = Random(kPixels * kChannels, 1);
  const std::vector<float> filters = Random(kTaps * kChannels * kFilters, 2);
  const std::vector<float> bias = Random(kFilters, 3);
  std::vector<float> offsets = Random(kPixels * kTaps * 2, 4), mask = Random(kPixels * kTaps, 5);
  if (!backward) {
    const deformable_conv2d::cpu::BranchForwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run({inputs.data(), filters.data(), bias.data(), 1, offsets.data(), mask.data()},
               executor, workspace);
    });
  } else {
    std::vector<float> grad_inputs(inputs.size()), grad_filters(filters.size());
    std::vector<float> grad_bias(bias.size());
    const std::vector<float> grad_mask = Random(kPixels * kTaps, 6);
    const deformable_conv2d::cpu::BranchBackwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run({inputs.data(), filters.data(), mask.data(), 1, offsets.data(), grad_mask.data(),
                grad_inputs.data(), grad_filters.data(), grad_bias.data()},
               executor, workspace);
    });
  }
}

// An encoder's: each pixel of both levels is a query, which reads near itself on both.
void DeformableAttention(bool backward, int calls) {
  constexpr int64_t kHeads = 8, kDepth = 32, kPoints = 4;
  deformable_attention::Arguments arguments;
  arguments.level_sizes = {16, 24, 8, 12};
  constexpr int64_t kPixels = 16 * 24 + 8 * 12, kRows = kPixels * kHeads, kSamples = 2 * kPoints;
  arguments.value = Shape({1, kPixels, kHeads, kDepth});
  arguments.spatial_shapes = Shape({2, 2});
  arguments.sampling_locations = Shape({1, kPixels, kHeads, 2, kPoints, 2});
  arguments.attention_weights = Shape({1, kPixels, kHeads, 2, kPoints});
  deformable_attention::Geometry geometry;
  const Status status = deformable_attention::Parse(arguments, &geometry);
  if (!status.ok()) Fail(status.message().c_str());

  const std::vector<float> value = Random(kRows * kDepth, 1);
  std::vector<float> locations = Random(kRows * kSamples * 2, 2);
  for (int64_t query = 0; query < kPixels; ++query) {
    const deformable_attention::Level& level = geometry.maps[query < 16 * 24 ? 0 : 1];
    const int64_t pixel = query - level.first_pixel;
    const float at[2] = {(static_cast<float>(pixel / level.width) + 0.5f) / level.height,
                         (static_cast<float>(pixel % level.width) + 0.5f) / level.width};
    for (int64_t i = 0; i < kHeads * kSamples * 2; ++i) {
      float& location = locations[query * kHeads * kSamples * 2 + i];
      location = at[i % 2] + 0.2f * location;
    }
  }
  const std::vector<float> weights = Random(kRows * kSamples, 3);
  std::vector<float> output = Random(kRows * kDepth, 4);
  const deformable_attention::InputTensors<float> tensors = {value.data(), locations.data(),
                                                             weights.data()};
  if (!backward) {
    const deformable_attention::cpu::ForwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run({tensors, output.data()}, executor, workspace);
    });
  } else {
    std::vector<float> grad_value(value.size()), grad_locations(locations.size());
    std::vector<float> grad_weights(weights.size());
    const deformable_attention::cpu::BackwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run(
          {tensors, output.data(), grad_value.data(), grad_locations.data(), grad_weights.data()},
          executor, workspace);
    });
  }
}

void RoIPool(int64_t group_size, int64_t depth, int64_t classes, bool backward, int calls) {
  constexpr int64_t kHeight = 20, kWidth = 30, kBoxes = 4, kBins = 7;
  const int64_t channels = group_size * group_size * depth;
  roi_pool::Arguments arguments;
  arguments.inputs = Shape({1, kHeight, kWidth, channels});
  arguments.boxes = Shape({kBoxes, 4});
  arguments.box_indices = Shape({kBoxes});
  arguments.offsets = Shape({kBoxes, kBins, kBins, classes, 2});
  arguments.output_size = {kBins, kBins};
  arguments.group_size = group_size;
  arguments.spatial_scale = 1;
  arguments.samples_per_bin = 4;
  arguments.gamma = 0.1f;
  roi_pool::Geometry geometry;
  const Status status = roi_pool::Parse(arguments, &geometry);
  if (!status.ok()) Fail(status.message().c_str());

  const std::vector<float> inputs = Random(kHeight * kWidth * channels, 1);
  const std::vector<float> boxes = {2, 3, 12, 20, 1, 1, 18, 28, 5, 9, 9, 12, 8, 2, 17, 15};
  const std::vector<int32_t> box_indices(kBoxes, 0);
  const std::vector<float> offsets = Random(kBoxes * kBins * kBins * classes * 2, 2);
  std::vector<float> output = Random(kBoxes * kBins * kBins * depth, 3);
  const roi_pool::InputTensors<float> tensors = {inputs.data(), boxes.data(), box_indices.data(),
                                                 offsets.data(), nullptr};
  if (!backward) {
    const roi_pool::cpu::ForwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run({tensors, output.data()}, executor, workspace);
    });
  } else {
    std::vector<float> grad_inputs(inputs.size()), grad_offsets(offsets.size());
    const roi_pool::cpu::BackwardPlan<float> plan(geometry, 1);
    Call(plan, calls, [&](Executor& executor, void* workspace) {
      plan.Run({tensors, output.data(), grad_inputs.data(), grad_offsets.data(), nullptr}, executor,
               workspace);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) Fail("usage: instructions OPERATOR forward|backward CALLS");
  const bool backward = std::strcmp(argv[2], "backward") == 0;
  const int calls = std::atoi(argv[3]);
  if (std::strcmp(argv[1], "deformable_conv2d") == 0) {
    DeformableConv2D(backward, calls);
  } else if (std::strcmp(argv[1], "conv2d_branch") == 0) {
    Conv2DBranch(backward, calls);
  } else if (std::strcmp(argv[1], "deformable_attention") == 0) {
    DeformableAttention(backward, calls);
  } else if (std::strcmp(argv[1], "roi_pool") == 0) {
    RoIPool(1, 64, 1, backward, calls);
  } else if (std::strcmp(argv[1], "psroi_pool") == 0) {
    RoIPool(7, 21, 21, backward, calls);
  } else {
    Fail(
        "OPERATOR is conv2d_branch, deformable_attention, deformable_conv2d, roi_pool or "
        "psroi_pool");
  }
}
