// How the CUDA kernels of multi-scale deformable attention are launched: what both passes share.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_LAUNCH_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_LAUNCH_H_

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/base/float_types.h"
#include "kernels/base/integers.h"
#include "kernels/base/status.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/runs.h"
#include "kernels/deformable_attention/cuda_plan.h"
#include "kernels/deformable_attention/cuda_samples.h"

namespace tf_deformable::deformable_attention::cuda {

// More would leave a multiprocessor few blocks.
inline constexpr int64_t kSamplesInSharedMemory = 24 << 10;
inline constexpr int64_t kMostSamplesAtOnce = 32;

inline Status CheckFits(const Geometry& g) {
  bool fits = g.pixels <= kMostIndex && g.channels() <= kMostIndex && g.samples <= kMostIndex &&
              g.queries <= kMostIndex && g.batch <= kMostIndex && g.levels <= kMostLevels;
  for (const Level& level : g.maps) {
    fits &= level.height <= kExactAsFloat && level.width <= kExactAsFloat;
  }
  if (fits) return Status();
  return Status(Status::Code::kTooLarge,
                std::string(kOp) + ": a GPU takes at most " + std::to_string(kMostLevels) +
                    " levels of at most 2^24 pixels along an axis, and 2^30 pixels, channels, "
                    "samples and queries, got value " +
                    ToString({g.batch, g.pixels, g.heads, g.depth}) + ", " +
                    std::to_string(g.levels) + " levels, " + std::to_string(g.queries) +
                    " queries");
}

// Whether there is nothing to sample for; an output then has no element, or is 0.
inline bool HasNoRows(const Geometry& g) { return g.rows() == 0; }

inline Job MakeJob(const Geometry& g) {
  Job job = {};
  job.image_rows = g.queries * g.heads;
  job.first_row = 0;
  job.last_row = g.rows();
  job.pixels = g.pixels;
  job.heads = static_cast<int32_t>(g.heads);
  job.depth = static_cast<int32_t>(g.depth);
  job.num_levels = static_cast<int32_t>(g.levels);
  job.samples = static_cast<int32_t>(g.samples);
  job.normalized = g.coordinates == Coordinates::kNormalized;
  int64_t samples = 0;
  for (size_t i = 0; i < g.maps.size(); ++i) {
    samples += g.maps[i].points;
    job.levels[i] = {static_cast<int32_t>(g.maps[i].height), static_cast<int32_t>(g.maps[i].width),
                     static_cast<int32_t>(g.maps[i].first_pixel), static_cast<int32_t>(samples)};
  }
  return job;
}

// Launches a kernel with teams for the rows of the job, whose threads have runs of so many
// channels.
template <typename T, typename... Parameters>
Status LaunchTeams(void (*kernel)(Job, Parameters...), Job job, int run, void* stream,
                   const Parameters&... parameters) {
  constexpr int64_t kBytes = sizeof(Sample<ComputeType<T>>);
  job.lanes = ChooseLanes(CeilDiv(job.depth, run));
  const int64_t teams = kThreads / job.lanes;
  job.samples_at_once =
      std::clamp<int64_t>(kSamplesInSharedMemory / (teams * kBytes) - 1, 1, kMostSamplesAtOnce);
  job.samples_at_once = std::max(std::min(job.samples_at_once, job.samples), 1);
  const int64_t shared_bytes = teams * SamplesStride(job.samples_at_once) * kBytes;
  return Launch(kOp, kernel, CeilDiv(job.last_row - job.first_row, teams), kThreads, shared_bytes,
                stream, job, parameters...);
}

}  // namespace tf_deformable::deformable_attention::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_LAUNCH_H_
