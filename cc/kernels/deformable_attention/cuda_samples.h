// What the CUDA kernels of multi-scale deformable attention share: rows, and their samples.
//
//   y[n,q,h] = sum over levels l, points p of weight[n,q,h,l,p] * x_l(location[n,q,h,l,p])
//
// A row is a head of a query of an image. A team of threads of a warp has a row and shares
// its channels. The samples of the warp's rows are worked out by all its threads, a thread each,
// and wait in shared memory for the teams.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_SAMPLES_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_SAMPLES_H_

#include <cstdint>

#include "kernels/base/integers.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/primitives.h"
#include "kernels/deformable_attention/tensors.h"
#include "kernels/sampling/bilinear.h"

namespace tf_deformable::deformable_attention::cuda {

using namespace tf_deformable::cuda;

inline constexpr int kThreads = 128;
inline constexpr int kMostLevels = 128;  // the parameters of a kernel hold 4 KB

struct CudaLevel {
  int32_t height, width, first_pixel;
  int32_t last_sample;  // of a row: where the samples of the next level begin
};

// What a launch needs to know. Rows are counted over (image, query, head).
struct Job {
  int64_t first_row, last_row;
  int64_t image_rows;  // queries x heads
  int64_t pixels;      // S
  int32_t heads, depth, num_levels, samples;
  int32_t lanes;            // of a team, a power of 2, at most a warp
  int32_t samples_at_once;  // of a row, in shared memory
  bool normalized;
  CudaLevel levels[kMostLevels];
};

template <typename A>
struct alignas(16) Sample {
  A weights[4];  // of the corners, times the sample's weight
  int32_t pixel, width;
  uint32_t corners;
  int32_t height;
  A fraction_y, fraction_x, weight;
};

// Samples from a row to the next one in shared memory: an odd number, so that teams that read
// theirs at once do so from different banks.
TF_DEFORMABLE_HOST_DEVICE int32_t SamplesStride(int32_t samples_at_once) {
  return samples_at_once | 1;
}

// `number` of the row's samples, which is one of a point of `level`.
template <typename T>
TF_DEFORMABLE_DEVICE Sample<ComputeType<T>> MakeSample(const Job& job,
                                                       const InputTensors<T>& tensors, int64_t row,
                                                       int32_t number, const CudaLevel& level) {
  using A = ComputeType<T>;
  const int64_t at = row * job.samples + number;
  A y = LoadSampling(tensors.locations, 2 * at), x = LoadSampling(tensors.locations, 2 * at + 1);
  if (job.normalized) {
    y = PositionOfLocation(y, static_cast<A>(level.height));
    x = PositionOfLocation(x, static_cast<A>(level.width));
  }
  const SamplingPoint<A> point = MakeSamplingPoint(y, x, level.height, level.width, level.width);
  Sample<A> sample;
  sample.weight = LoadSampling(tensors.weights, at);
  sample.fraction_y = point.fraction_y;
  sample.fraction_x = point.fraction_x;
  CornerWeights(point.fraction_y, point.fraction_x, sample.weight, sample.weights);
  sample.pixel = level.first_pixel + point.pixel;
  sample.width = level.width;
  sample.height = level.height;
  sample.corners = point.corners;
  return sample;
}

TF_DEFORMABLE_DEVICE const CudaLevel& LevelOfSample(const Job& job, int32_t number) {
  int32_t level = 0;
  while (number >= job.levels[level].last_sample) ++level;
  return job.levels[level];
}

// Where the channels of a head begin, in the value or its gradient.
TF_DEFORMABLE_DEVICE int64_t HeadAt(const Job& job, int64_t row) {
  const int64_t image = row / job.image_rows;
  return (image * job.pixels * job.heads + row % job.heads) * job.depth;
}

// From there to the channels of a corner of a sample.
template <typename A>
TF_DEFORMABLE_DEVICE int64_t CornerAt(const Job& job, const Sample<A>& sample, int corner) {
  const int64_t pixel = sample.pixel + corner / 2 * sample.width + corner % 2;
  return pixel * job.heads * job.depth;
}

// Calls work(samples, first, count) for the samples [first, first + count) of the team's row, until
// all were there. The threads of a warp go along together, those without a row too, whose row is
// the last one; `samples` are in shared memory.
template <typename T, typename F>
TF_DEFORMABLE_DEVICE void ForEachSamples(const Job& job, const InputTensors<T>& tensors,
                                         const F& work) {
  using A = ComputeType<T>;
  const int warp = ThreadIndex() / 32, thread = ThreadIndex() % 32;
  const int teams = 32 / job.lanes;  // of a warp
  const int32_t stride = SamplesStride(job.samples_at_once);
  Sample<A>* const of_warp =
      reinterpret_cast<Sample<A>*>(SharedMemory()) + static_cast<int64_t>(warp) * teams * stride;
  const int64_t first_row = job.first_row + (BlockIndex() * (kThreads / 32) + warp) * teams;
  for (int32_t first = 0; first < job.samples; first += job.samples_at_once) {
    const int32_t count = Min(job.samples - first, job.samples_at_once);
    SyncWarp();  // the last ones are done with
    for (int32_t i = thread; i < teams * count; i += 32) {
      const int64_t row = Min(first_row + i / count, job.last_row - 1);
      const int32_t number = first + i % count;
      of_warp[i / count * stride + i % count] =
          MakeSample<T>(job, tensors, row, number, LevelOfSample(job, number));
    }
    SyncWarp();  // they are there
    work(of_warp + thread / job.lanes * stride, first, count);
  }
}

// The row of the thread's team; job.last_row or beyond: it has none.
TF_DEFORMABLE_DEVICE int64_t RowOfTeam(const Job& job) {
  return job.first_row + (BlockIndex() * kThreads + ThreadIndex()) / job.lanes;
}

}  // namespace tf_deformable::deformable_attention::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_SAMPLES_H_
