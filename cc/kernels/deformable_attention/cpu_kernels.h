// What the CPU driver (cpu_plan.cc) and the kernels compiled once per instruction set
// (cpu_kernels.inc) agree on: plain data and function pointers, no inline code.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CPU_KERNELS_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CPU_KERNELS_H_

#include <cstdint>
#include <type_traits>

#include "kernels/base/float_types.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/deformable_attention/tensors.h"
#include "kernels/sampling/bilinear.h"

namespace tf_deformable::deformable_attention::cpu {

// A worker works out so many samples of a query's head at a time, and sums so many channels.
inline constexpr int64_t kMostSamples = 256;
inline constexpr int64_t kMostBlockChannels = 256;

// What is known of the maps for every sample (level, point) of a row, and again for as many rows as
// are worked out together: the same for all. Whole vectors long.
template <typename A>
struct SampleMaps {
  using Size = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;  // as wide as A
  const Size *heights, *widths;
  const int64_t* first_pixels;
};

// A row is a head of a query of an image: what the output has D channels of.
template <typename T>
struct ForwardJob {
  using A = ComputeType<T>;
  ForwardTensors<T> tensors;
  int64_t rows, image_rows;  // of all images; of one, Q*heads
  int64_t pixels;            // of an image: S
  int64_t heads, depth, samples;
  bool normalized;
  SampleMaps<A> maps;
  int64_t rows_per_unit;
  // Whether the samples of a row are worked out at once, for all channels, and those of so many
  // rows together, to fill the vectors.
  bool at_once;
  int64_t rows_together;
  // In a worker's space: SampleVectors, where the channels of each one's head begin, sums of a
  // channel block.
  int64_t samples_at, heads_at, sums_at;
};

template <typename T>
struct BackwardJob {
  using A = ComputeType<T>;
  BackwardTensors<T> tensors;
  int64_t pixels;  // of an image: S
  int64_t queries, heads, depth, samples;
  bool normalized;
  SampleMaps<A> maps;
  // A unit owns the value's gradient of a channel block of one head of one image.
  int64_t blocks, channels_per_block;
  // The step has the queries [first_query, last_query) of the images [first_image, last_image).
  int64_t first_image, last_image;
  int64_t first_query, last_query;
  A* grad_value;  // [images of the step, S, heads, D]
  // Gradients of (y, x, weight) by each block: [images, heads, blocks, queries, samples, 3]; null
  // if there is one block.
  A* partials;
  // In a worker's space: SampleVectors, the gradients of their (y, x, weight), those of the output,
  // what is scattered off the map.
  int64_t samples_at, gradients_at, upstream_at, discard_at;
};

template <typename T>
struct Kernels {
  using A = ComputeType<T>;
  // Units of work; each writes memory of its own.
  void (*forward)(const ForwardJob<T>& job, int64_t unit, A* workspace);
  void (*backward)(const BackwardJob<T>& job, int64_t unit, A* workspace);
  // Unit: a query of an image of the step.
  void (*reduce_partials)(const BackwardJob<T>& job, int64_t unit);
  void (*round)(const A* from, int64_t size, T* to);

  int64_t lanes;
};

TF_DEFORMABLE_DECLARE_KERNEL_TABLES(Kernels, kKernels)

}  // namespace tf_deformable::deformable_attention::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_ATTENTION_CPU_KERNELS_H_
