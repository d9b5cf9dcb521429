// CUDA kernels of multi-scale deformable attention.
//
//   y[n,q,h] = sum over levels l, points p of weight[n,q,h,l,p] * x_l(location[n,q,h,l,p])
//
// A row is a head of a query of an image. A team of threads, part of a warp, has a row and shares
// its channels. The samples of the warp's rows are worked out by all its threads, a thread each,
// and wait in shared memory for the teams.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_KERNELS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_KERNELS_H_

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

template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 4)
void ForwardKernel(Job job, ForwardTensors<T> tensors) {
  using A = ComputeType<T>;
  constexpr int kRun = kVectors ? 16 / sizeof(T) : 1;
  const int lane = ThreadIndex() % job.lanes;
  const int64_t row = RowOfTeam(job);
  const bool has_row = row < job.last_row;
  const T* const value = tensors.value + (has_row ? HeadAt(job, row) : 0);
  // So many channels of a row at a time; all teams take as many turns.
  for (int32_t begin = 0; begin < job.depth; begin += job.lanes * kRun) {
    const int32_t channel = begin + lane * kRun;
    const bool has_channels = has_row && channel < job.depth;
    A sums[kRun] = {};
    ForEachSamples<T>(job, tensors, [&](const Sample<A>* samples, int32_t, int32_t count) {
      if (!has_channels) return;
#pragma unroll 2
      for (int32_t i = 0; i < count; ++i) {
        const Sample<A>& sample = samples[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          A values[kRun] = {};
          if ((sample.corners >> j & 1) != 0) {
            LoadRun<T, kRun>(value + CornerAt(job, sample, j) + channel, values);
          }
#pragma unroll
          for (int k = 0; k < kRun; ++k) sums[k] += sample.weights[j] * values[k];
        }
      }
    });
    if (has_channels) StoreElements<T, kRun>(sums, tensors.output + row * job.depth + channel);
  }
}

// grad_value: of the images from that of job.first_row on, in the type of sums; null: not this one.
template <typename T, bool kVectors>
TF_DEFORMABLE_KERNEL(kThreads, 4)
void BackwardKernel(Job job, BackwardTensors<T> tensors, ComputeType<T>* grad_value) {
  using A = ComputeType<T>;
  constexpr int kRun = kVectors ? 4 : 1;
  const int lane = ThreadIndex() % job.lanes;
  const int64_t row = RowOfTeam(job);
  const bool has_row = row < job.last_row;
  const T* const value = tensors.value + (has_row ? HeadAt(job, row) : 0);
  const T* const grad_output = tensors.grad_output + (has_row ? row * job.depth : 0);
  A* const target = grad_value == nullptr || !has_row
                        ? nullptr
                        : grad_value + HeadAt(job, row) - HeadAt(job, job.first_row);
  ForEachSamples<T>(job, tensors, [&](const Sample<A>* samples, int32_t first, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      const Sample<A>& sample = samples[i];
      A dots[4] = {};
      for (int32_t c = lane * kRun; has_row && c < job.depth; c += job.lanes * kRun) {
        A upstream[kRun];
        LoadRun<T, kRun>(grad_output + c, upstream);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if ((sample.corners >> j & 1) == 0) continue;
          const int64_t at = CornerAt(job, sample, j) + c;
          A values[kRun];
          LoadRun<T, kRun>(value + at, values);
#pragma unroll
          for (int k = 0; k < kRun; ++k) {
            dots[j] += upstream[k] * values[k];
            values[k] = sample.weights[j] * upstream[k];
          }
          if (target != nullptr) AddRun<A, kRun>(target + at, values);
        }
      }
      PointGradients<A> of_point = MakePointGradients(
          sample.fraction_y, sample.fraction_x, sample.weight, dots[0], dots[1], dots[2], dots[3]);
      for (int lanes = job.lanes / 2; lanes > 0; lanes /= 2) {
        of_point.y += ShuffleXor(of_point.y, lanes);
        of_point.x += ShuffleXor(of_point.x, lanes);
        of_point.mask += ShuffleXor(of_point.mask, lanes);
      }
      if (!has_row || lane != 0) continue;
      if (job.normalized) {
        of_point.y *= static_cast<A>(sample.height);
        of_point.x *= static_cast<A>(sample.width);
      }
      const int64_t at = row * job.samples + first + i;
      StoreSampling(tensors.grad_locations, 2 * at, of_point.y);
      StoreSampling(tensors.grad_locations, 2 * at + 1, of_point.x);
      StoreSampling(tensors.grad_weights, at, of_point.mask);
    }
  });
}

// The gradient of the value with a thread to each channel of a level of an image, which adds all
// that is added to it: the device keeps the order of what one thread adds to one element.
// Threads: [images of the job's rows, heads, levels, depth].
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void DeterministicValueKernel(Job job, BackwardTensors<T> tensors, ComputeType<T>* grad_value) {
  using A = ComputeType<T>;
  int64_t index = BlockIndex() * kThreads + ThreadIndex();
  const int32_t channel = static_cast<int32_t>(index % job.depth);
  index /= job.depth;
  const int32_t number = static_cast<int32_t>(index % job.num_levels);
  index /= job.num_levels;
  const int32_t head = static_cast<int32_t>(index % job.heads);
  const int64_t image = index / job.heads;  // of the step
  const int64_t image_row = job.first_row + image * job.image_rows;
  if (image_row >= job.last_row) return;
  const CudaLevel& level = job.levels[number];
  const int32_t first_sample = number == 0 ? 0 : job.levels[number - 1].last_sample;
  A* const target = grad_value + (image * job.pixels * job.heads + head) * job.depth + channel;
  for (int64_t row = image_row + head; row < image_row + job.image_rows; row += job.heads) {
    const A upstream = ToCompute(tensors.grad_output[row * job.depth + channel]);
    for (int32_t i = first_sample; i < level.last_sample; ++i) {
      const Sample<A> sample = MakeSample<T>(job, tensors, row, i, level);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if ((sample.corners >> j & 1) == 0) continue;
        AtomicAdd(target + CornerAt(job, sample, j), sample.weights[j] * upstream);
      }
    }
  }
}

}  // namespace tf_deformable::deformable_attention::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CUDA_KERNELS_H_
