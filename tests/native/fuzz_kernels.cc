// Runs the kernels on random shapes and hostile values, every tensor between two guard pages, and
// validation on random shapes and attributes. Usage:
//
//   fuzz_kernels FIRST_SEED LAST_SEED [keep FILE | compare FILE] [threads]
//   fuzz_kernels workspaces
//
// Results are checked against the scalar operators; those that are kept are compared with those of
// another instruction set, or of other threads. With `threads` units run on several at once;
// otherwise on one, in reverse order. The second form runs nothing: it checks how much memory
// lopsided shapes would need.
//
// fuzz_one_input.cc makes the same cases of the bytes that a fuzzer thinks of.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "choices.h"
#include "geometry_cases.h"
#include "kernel_cases.h"
#include "kernels/deformable_attention/cpu_plan.h"
#include "kernels/deformable_conv2d/cpu_backward_plan.h"
#include "kernels/deformable_conv2d/cpu_branch_plan.h"
#include "kernels/deformable_conv2d/cpu_forward_plan.h"
#include "pool.h"
#include "results.h"

namespace tf_deformable {
namespace {

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
}  // namespace tf_deformable

int main(int argc, char** argv) {
  using namespace tf_deformable;
  if (argc == 2 && std::strcmp(argv[1], "workspaces") == 0) return WorkspacesAreBounded() ? 0 : 1;
  std::unique_ptr<Pool> pool;
  Results results;
  if (argc > 3 && std::strcmp(argv[argc - 1], "threads") == 0) {
    pool = std::make_unique<Pool>(7);
    --argc;
  }
  if (argc == 5) {
    results.Open(argv[3], argv[4]);
  } else if (argc != 3) {
    return 2;
  }
  const int last = std::atoi(argv[2]);
  bool all_hold = true;
  for (int seed = std::atoi(argv[1]); seed < last; ++seed) {
    std::fprintf(stderr, "%d\r", seed);  // the last one seen is the one that failed
    const std::string name = "seed " + std::to_string(seed);
    results.case_name = name.c_str();
    SeededChoices choices(static_cast<uint32_t>(seed));
    RunKernelCase(&choices, pool.get(), &results);
    if (!RunGeometryCase(&choices)) {
      std::printf("%s: its geometry\n", name.c_str());
      all_hold = false;
    }
  }
  pool.reset();
  if (!results.Close() || !results.Report() || !all_hold) return 1;
  std::puts("all cases ran");
}
