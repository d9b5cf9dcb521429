// CUDA kernels of the gradients of inputs, offsets and mask, and their launches.
//
// Three passes over the output pixels of some images: the samples are listed by cell
// (cuda_cell_lists.h), their gradients ds go into the workspace (cuda_columns_gradient.h), and each
// pixel of the inputs gathers what is added to it. Nothing is added by two threads, so that results
// are the same in every run.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/reduce.h"
#include "kernels/deformable_conv2d/cuda_cell_lists.h"
#include "kernels/deformable_conv2d/cuda_columns_gradient.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

// How a launch that gathers cuts the work, and where it reads and writes.
//
// A team of threads has a row of cells, a strip of kStripCells of it, and a range of the channels
// of an offset group. It walks along the cells of its row and of the row above: the first have
// their upper corners in the team's row of pixels, the others their lower ones.
template <typename T>
struct GatherJob {
  using A = ComputeType<T>;
  const CellList* lists;
  const CellSample<A>* samples;
  const T* columns;  // ds [pixels, taps, C]; not used if depthwise
  // The launch has so many of the listed pixels, from that one on, of images from that one on.
  int64_t first_pixel, pixels;
  int32_t first_image;
  int32_t ranges, strips, row_blocks;  // of an offset group, of a row of cells, of a map
  // Where gradients are added up that come part by part, [H, W, C] of the one image; null: they
  // come at once and go to grad_inputs.
  A* sums = nullptr;
  bool adds = false;  // the sums hold something already
  // Gradients for (dy, dx, mask): [ranges, pixels, offset groups, taps, 3]; null: there is one
  // range, which writes them itself.
  A* partials;
};

inline constexpr int kStripCells = 8;

template <typename T>
inline constexpr int kGatherChannels = sizeof(T) == 8 ? 4 : 8;  // so many a thread

// Loads the channels of a thread, 16 bytes at a time, kTeam threads next to each other, or one by
// one; zeros where there are none.
template <typename T, bool kVectors, int kTeam>
TF_DEFORMABLE_DEVICE void LoadChannels(const T* from, int member, bool present, int left,
                                       ComputeType<T> (&values)[kGatherChannels<T>]) {
  using A = ComputeType<T>;
  constexpr int kLanes = 16 / sizeof(T);
#pragma unroll
  for (int v = 0; v < kGatherChannels<T>; v += kLanes) {
    const int at = v * kTeam + member * kLanes;
    if constexpr (kVectors) {
      A lanes[kLanes];
      Widen<T>(present && at < left ? LoadGlobal16(from + at) : Vector16{{0, 0, 0, 0}}, lanes);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[v + i] = lanes[i];
    } else {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        values[v + i] = present && at + i < left ? ToCompute(from[at + i]) : A{0};
      }
    }
  }
}

// Adds three numbers over the threads of a team, whose size is a power of 2 from 8 on. The first of
// each quarter of the team gets a sum: 0, 1, 2, in this order (the last quarter none).
template <int kTeam, typename A>
TF_DEFORMABLE_DEVICE A AddThree(const A (&values)[3], int member) {
  const bool second_half = (member & kTeam / 2) != 0, odd_quarter = (member & kTeam / 4) != 0;
  A first = second_half ? values[2] : values[0], second = second_half ? A{0} : values[1];
  first += ShuffleXor(second_half ? values[0] : values[2], kTeam / 2);
  second += ShuffleXor(second_half ? values[1] : A{0}, kTeam / 2);
  A sum = odd_quarter ? second : first;
  sum += ShuffleXor(odd_quarter ? first : second, kTeam / 4);
#pragma unroll
  for (int lanes = kTeam / 8; lanes > 0; lanes /= 2) sum += ShuffleXor(sum, lanes);
  return sum;
}

// kDepthwise: each channel is a group of its own, with one filter; then ds is worked out here.
template <typename T, bool kVectors, bool kDepthwise, int kTeam>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void GatherKernel(Convolution g, BackwardTensors<T> tensors, GatherJob<T> job) {
  using A = ComputeType<T>;
  constexpr int kChannels = kGatherChannels<T>, kRangeChannels = kChannels * kTeam;
  constexpr int kTeams = kThreads / kTeam, kLanes = 16 / sizeof(T);
  const int member = ThreadIndex() % kTeam;
  int64_t block = BlockIndex();
  const int32_t row_block = static_cast<int32_t>(block % job.row_blocks);
  block /= job.row_blocks;
  const int32_t strip = static_cast<int32_t>(block % job.strips);
  block /= job.strips;
  const int32_t range = static_cast<int32_t>(block % job.ranges);
  block /= job.ranges;
  const int32_t offset_group = static_cast<int32_t>(block % g.offset_groups);
  const int64_t listed_image = job.first_image + block / g.offset_groups;
  // Rows of cells begin at -1. Teams beyond the map go along, for a warp shuffles as a whole.
  const int32_t y = row_block * kTeams + ThreadIndex() / kTeam - 1;
  const int32_t first_x = strip * kStripCells, last_x = Min(first_x + kStripCells, g.width);
  const int32_t channel = offset_group * g.offset_group_channels + range * kRangeChannels;
  const int32_t left = g.offset_group_channels - range * kRangeChannels;
  const CellList* const lists =
      job.lists + (listed_image * g.offset_groups + offset_group) * CellLists<A>::Cells(g);
  const int64_t output_size = static_cast<int64_t>(g.output_height) * g.output_width;
  const int64_t image_row = static_cast<int64_t>(g.width) * g.channels;
  const int64_t image_at =
      (g.first_pixel / output_size + listed_image) * g.height * image_row + channel;
  const T* const inputs = tensors.inputs + image_at;

  A here[kChannels], right[kChannels];  // gradients of the pixel at the cell, and of the next one
  A x[2][2][kChannels];                 // inputs at the corners of the cell
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    here[i] = right[i] = 0;
    x[0][0][i] = x[0][1][i] = x[1][0][i] = x[1][1][i] = 0;
  }
  bool adds_here = false, adds_right = false;  // whether there is anything in them

  const auto load_ds = [&](int32_t row, bool present, A(&ds)[kChannels]) {
    if constexpr (kDepthwise) {
      const int32_t pixel = row / g.taps, tap = row - pixel * g.taps;
      A weights[kChannels];
      LoadChannels<T, kVectors, kTeam>(
          tensors.grad_output + (g.first_pixel + pixel) * g.channels + channel, member, present,
          left, ds);
      LoadChannels<T, kVectors, kTeam>(
          tensors.filters + static_cast<int64_t>(tap) * g.channels + channel, member, present, left,
          weights);
#pragma unroll
      for (int i = 0; i < kChannels; ++i) ds[i] *= weights[i];
    } else {
      LoadChannels<T, kVectors, kTeam>(
          job.columns + (row - job.first_pixel * g.taps) * g.channels + channel, member, present,
          left, ds);
    }
  };
  // Adds to the pixels at the cell and right of it what the samples of the cell give to them: to
  // its upper corners, or to its lower ones. With kDots, they also get their own gradients.
  const auto add_cell = [&](int32_t cell_y, int32_t cell_x, bool is_upper, bool is_there,
                            auto dots) {
    constexpr bool kDots = decltype(dots)::value;
    const CellList list =
        is_there ? lists[(cell_y + 1) * (g.width + 1) + cell_x + 1] : CellList{0, 0};
    int32_t count = list.count;
#pragma unroll
    for (int lanes = kTeam; lanes < 32; lanes *= 2) {
      const int32_t other = ShuffleXor(count, lanes);
      count = count > other ? count : other;
    }
    adds_here |= list.count > 0;
    adds_right |= list.count > 0;
    const bool has_row[2] = {cell_y >= 0, cell_y + 1 < g.height};
    const bool has_column[2] = {cell_x >= 0, cell_x + 1 < g.width};
#pragma unroll 2
    for (int32_t k = 0; k < count; ++k) {
      const bool present = k < list.count;
      CellSample<A> s = {0, 0, 0, 0};
      if (present) s = LoadCellSample(job.samples + list.first + k);
      A ds[kChannels];
      load_ds(s.row, present, ds);
      if (present) {
        const A weight = (is_upper ? 1 - s.fraction_y : s.fraction_y);
        const A weight_here = weight * (1 - s.fraction_x) * s.mask;
        const A weight_right = weight * s.fraction_x * s.mask;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          here[i] += weight_here * ds[i];
          right[i] += weight_right * ds[i];
        }
      }
      if constexpr (kDots) {
        A d[2][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          A dot = 0;
#pragma unroll
          for (int i = 0; i < kChannels; ++i) dot += ds[i] * x[j / 2][j % 2][i];
          // Corners off the map count as 0, even if ds is infinite.
          d[j / 2][j % 2] = has_row[j / 2] && has_column[j % 2] ? dot : 0;
        }
        const PointGradients<A> of_point = MakePointGradients(s.fraction_y, s.fraction_x, s.mask,
                                                              d[0][0], d[0][1], d[1][0], d[1][1]);
        const A sums[3] = {of_point.y, of_point.x, of_point.mask};
        const A sum = AddThree<kTeam>(sums, member);
        const int which = member / (kTeam / 4);
        if (!present || member % (kTeam / 4) != 0 || which == 3) continue;
        int64_t sample = s.row;  // among the listed ones
        if (g.offset_groups > 1) {
          const int32_t pixel = s.row / g.taps, tap = s.row - pixel * g.taps;
          sample = (static_cast<int64_t>(pixel) * g.offset_groups + offset_group) * g.taps + tap;
        }
        const int64_t pixel_samples = static_cast<int64_t>(g.offset_groups) * g.taps;
        if (job.partials != nullptr) {
          const int64_t in_range = sample - job.first_pixel * pixel_samples;
          job.partials[(range * job.pixels * pixel_samples + in_range) * 3 + which] = sum;
          continue;
        }
        const int64_t at = g.first_pixel * pixel_samples + sample;
        if (which < 2) {
          StoreSampling(tensors.grad_offsets, 2 * at + which, sum);
        } else if (tensors.grad_mask) {
          StoreSampling(tensors.grad_mask, at, sum);
        }
      }
    }
  };

  // The pixel at a strip's first cell also gets something from the cell before.
  for (int32_t cell_x = first_x - 1; cell_x < last_x; ++cell_x) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      here[i] = right[i];
      right[i] = 0;
      x[0][0][i] = x[0][1][i];
      x[1][0][i] = x[1][1][i];
    }
    adds_here = adds_right;
    adds_right = false;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool present = y + j >= 0 && y + j < g.height && cell_x + 1 < g.width;
      LoadChannels<T, kVectors, kTeam>(inputs + (y + j) * image_row + (cell_x + 1) * g.channels,
                                       member, present, left, x[j][1]);
    }
    const bool is_cell = y < g.height;
    add_cell(y - 1, cell_x, false, is_cell && y >= 0, std::false_type());
    // Of the strip before, but for the first.
    if (cell_x < first_x && strip > 0) {
      add_cell(y, cell_x, true, is_cell, std::false_type());
      continue;
    }
    add_cell(y, cell_x, true, is_cell, std::true_type());
    if (cell_x < first_x || y < 0 || !is_cell || (job.adds && !adds_here)) continue;
    const int64_t pixel = static_cast<int64_t>(y) * g.width + cell_x;
#pragma unroll
    for (int v = 0; v < kChannels; v += kLanes) {
      const int at = v * kTeam + member * kLanes;
      A values[kLanes];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] = here[v + i];
      if (job.sums != nullptr) {
        A* const to = job.sums + pixel * g.channels + channel + at;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          if (at + i < left) to[i] = job.adds ? to[i] + values[i] : values[i];
        }
      } else {
        StoreRun<T, kLanes, kVectors>(values, at, left,
                                      tensors.grad_inputs + image_at + pixel * g.channels + at);
      }
    }
  }
}

// Adds up the ranges of each offset group, in their order. One thread to a sample of the launch's
// pixels; those off the map have their gradients already.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void ReducePartialsKernel(Convolution g, BackwardTensors<T> tensors, const ComputeType<T>* partials,
                          int32_t ranges) {
  using A = ComputeType<T>;
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  const int64_t samples = CountListedSamples(g);
  if (i >= samples) return;
  const ListedSample sample = MakeListedSample(g, i);
  const Offset<A> offset =
      LoadOffset(g, tensors.offsets, tensors.mask, sample.pixel, sample.offset_group, sample.tap);
  if (CellOf(g, sample, offset).corners == 0) return;
  A sums[3] = {};
  for (int32_t r = 0; r < ranges; ++r) {
#pragma unroll
    for (int k = 0; k < 3; ++k) sums[k] += partials[(r * samples + i) * 3 + k];
  }
  const int64_t at = g.first_pixel * g.offset_groups * g.taps + i;
  StoreSampling(tensors.grad_offsets, 2 * at, sums[0]);
  StoreSampling(tensors.grad_offsets, 2 * at + 1, sums[1]);
  if (tensors.grad_mask) StoreSampling(tensors.grad_mask, at, sums[2]);
}

// --- Launching -----------------------------------------------------------------------------------

template <typename T>
InputsGradientSteps PlanInputsGradient(const Geometry& g, const Convolution& c,
                                       const CudaOptions& options, const DeviceLimits& limits) {
  using A = ComputeType<T>;
  using Memory = CellListsMemory<A>;
  InputsGradientSteps steps;
  steps.team = 8;
  while (steps.team < 32 && steps.team * kGatherChannels<T> < c.offset_group_channels) {
    steps.team *= 2;
  }
  steps.ranges = CeilDiv(c.offset_group_channels, steps.team * kGatherChannels<T>);
  const int64_t pixel_samples = g.offset_groups * g.taps(), cells = CellLists<A>::Cells(c);
  const int64_t columns_bytes = g.is_depthwise() ? 0 : g.taps() * g.channels * sizeof(T);
  const int64_t partials_bytes =
      steps.ranges > 1 ? steps.ranges * pixel_samples * 3 * sizeof(A) : 0;
  const int64_t pixel_bytes = std::max<int64_t>(columns_bytes + partials_bytes, 1);
  const int64_t list_bytes =
      pixel_samples * (sizeof(CellSample<A>) + sizeof(SamplePlace) + sizeof(int32_t));
  const int64_t image_list_bytes =
      g.output_size() * list_bytes + g.offset_groups * cells * sizeof(CellList);
  constexpr int64_t kPartPixels = 128;  // parts are whole multiples of so many
  const int64_t columns_limit = options.columns_bytes > 0 ? options.columns_bytes : kColumnsBytes;
  const int64_t part = std::max(
      std::min(columns_limit / pixel_bytes, kListsBytes / list_bytes) / kPartPixels * kPartPixels,
      kPartPixels);
  steps.pixels_per_part = part < g.output_size() ? part : 0;
  steps.images_per_list = steps.images_per_step = 1;
  if (steps.pixels_per_part == 0) {
    const int64_t most = std::clamp<int64_t>(kListsBytes / image_list_bytes, 1, g.batch);
    steps.images_per_step =
        std::clamp<int64_t>(columns_limit / (g.output_size() * pixel_bytes), 1, most);
    steps.images_per_list = most / steps.images_per_step * steps.images_per_step;
  }
  int64_t step_pixels = steps.pixels_per_part;
  steps.pixels_per_list = steps.pixels_per_part;
  if (steps.pixels_per_part == 0) {
    step_pixels = steps.images_per_step * g.output_size();
    steps.pixels_per_list = steps.images_per_list * g.output_size();
  }
  int64_t prepared_bytes = 0;  // filters, as the product reads them
  if (!g.is_depthwise()) {
    // Whether tensors are aligned is not known yet.
    for (const bool vectorised : {false, true}) {
      const auto how = PrepareForColumnsGradient<T>(c, UsesFma<T>(options), vectorised, limits);
      prepared_bytes = std::max(prepared_bytes, PreparedBytes<T>(c, how));
    }
  }
  const bool has_sums = !std::is_same_v<T, A> && steps.pixels_per_part > 0;
  const Memory memory(nullptr, nullptr, steps.images_per_list * g.offset_groups, cells,
                      steps.pixels_per_list * pixel_samples);
  const auto take = [&](int64_t bytes) {
    const int64_t at = steps.workspace_bytes;
    steps.workspace_bytes += RoundUp(bytes, 256);
    return at;
  };
  steps.workspace_bytes = 0;
  take(prepared_bytes);  // at the begin
  steps.sums_at = take(has_sums ? g.height * g.width * g.channels * sizeof(A) : 0);
  steps.lists_at = take(memory.kept_bytes);
  // What passes while lists are made lies where ds will be.
  steps.passing_at = take(step_pixels * columns_bytes);
  steps.partials_at = take(step_pixels * partials_bytes);
  steps.workspace_bytes =
      std::max(steps.workspace_bytes, steps.passing_at + RoundUp(memory.passing_bytes, 256));
  return steps;
}

template <typename T, bool kVectors, bool kDepthwise>
Status LaunchGather(const Convolution& c, const BackwardTensors<T>& tensors, int32_t team,
                    int64_t images, GatherJob<T> job, void* stream) {
  job.strips = CeilDiv(c.width, kStripCells);
  job.row_blocks = CeilDiv(c.height + 1, kThreads / team);
  const int64_t blocks =
      images * c.offset_groups * job.ranges * static_cast<int64_t>(job.strips) * job.row_blocks;
  const auto launch = [&](auto kernel) {
    return Launch(kOp, kernel, blocks, kThreads, 0, stream, c, tensors, job);
  };
  if (team == 8) return launch(GatherKernel<T, kVectors, kDepthwise, 8>);
  if (team == 16) return launch(GatherKernel<T, kVectors, kDepthwise, 16>);
  return launch(GatherKernel<T, kVectors, kDepthwise, 32>);
}

template <typename T>
Status BackwardPlan<T>::RunInputs(const BackwardTensors<T>& tensors, void* workspace,
                                  void* stream) const {
  using A = ComputeType<T>;
  constexpr bool kWidened = !std::is_same_v<T, A>;
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  const int64_t image_size = g.height * g.width * g.channels;
  if (g.output_pixels() == 0) {
    return FillZeros(kOp, tensors.grad_inputs, g.batch * image_size * sizeof(T), stream);
  }
  char* const memory = static_cast<char*>(workspace);
  Convolution c;  // of the listed pixels
  Status status = MakeConvolution(g, &c);
  if (!status.ok()) return status;
  const bool vectorised =
      IsVectorised(c, depthwise_, 16 / sizeof(T),
                   {tensors.inputs, tensors.filters, tensors.grad_output, tensors.grad_inputs});
  const bool uses_fma = UsesFma<T>(options_);
  const auto lists =
      CellListsMemory<A>(memory + steps_.lists_at, memory + steps_.passing_at,
                         steps_.images_per_list * g.offset_groups, CellLists<A>::Cells(c),
                         steps_.pixels_per_list * g.offset_groups * g.taps())
          .lists;

  ColumnsGradientJob<T> columns;
  columns.grad_output = tensors.grad_output;
  columns.columns = reinterpret_cast<T*>(memory + steps_.passing_at);
  if (!depthwise_) {
    const auto how = PrepareForColumnsGradient<T>(c, uses_fma, vectorised, limits_);
    status = PrepareFilters(c, how, tensors.filters, reinterpret_cast<T*>(memory), &columns.filters,
                            stream);
  }
  GatherJob<T> gather;
  gather.lists = lists.lists;
  gather.samples = lists.samples;
  gather.columns = columns.columns;
  gather.ranges = steps_.ranges;
  gather.partials = steps_.ranges > 1 ? reinterpret_cast<A*>(memory + steps_.partials_at) : nullptr;

  // The pixels of a step, some of those listed.
  const auto run_step = [&](int64_t first_pixel, int64_t last_pixel, int64_t images) {
    Convolution step = c;
    step.first_pixel = first_pixel;
    step.last_pixel = last_pixel;
    gather.first_pixel = first_pixel - c.first_pixel;
    gather.pixels = last_pixel - first_pixel;
    gather.first_image = gather.first_pixel / g.output_size();
    Status done;
    if (!depthwise_) {
      done = ColumnsGradient(step, columns, uses_fma, vectorised, limits_, stream);
    }
    if (done.ok()) {
      done = depthwise_ ? (vectorised ? LaunchGather<T, true, true>
                                      : LaunchGather<T, false, true>)(c, tensors, steps_.team,
                                                                      images, gather, stream)
                        : (vectorised ? LaunchGather<T, true, false>
                                      : LaunchGather<T, false, false>)(c, tensors, steps_.team,
                                                                       images, gather, stream);
    }
    if (done.ok() && gather.partials != nullptr) {
      done = Launch(kOp, ReducePartialsKernel<T>,
                    CeilDiv(gather.pixels * g.offset_groups * g.taps(), kThreads), kThreads, 0,
                    stream, step, tensors, static_cast<const A*>(gather.partials), steps_.ranges);
    }
    return done;
  };
  const auto list = [&](int64_t first_pixel, int64_t last_pixel, int64_t images) {
    c.first_pixel = first_pixel;
    c.last_pixel = last_pixel;
    return MakeCellLists<T>(c, tensors, images * g.offset_groups, lists, stream);
  };

  if (steps_.pixels_per_part == 0) {
    for (int64_t image = 0; image < g.batch && status.ok(); image += steps_.images_per_list) {
      const int64_t last = std::min(image + steps_.images_per_list, g.batch);
      status = list(image * g.output_size(), last * g.output_size(), last - image);
      for (int64_t i = image; i < last && status.ok(); i += steps_.images_per_step) {
        const int64_t end = std::min(i + steps_.images_per_step, last);
        status = run_step(i * g.output_size(), end * g.output_size(), end - i);
      }
    }
    return status;
  }
  for (int64_t image = 0; image < g.batch && status.ok(); ++image) {
    const int64_t last = (image + 1) * g.output_size();
    if constexpr (kWidened) {
      gather.sums = reinterpret_cast<A*>(memory + steps_.sums_at);
    } else {
      gather.sums = tensors.grad_inputs + image * image_size;
    }
    gather.adds = false;
    for (int64_t first = image * g.output_size(); first < last && status.ok();
         first += steps_.pixels_per_part) {
      const int64_t end = std::min(first + steps_.pixels_per_part, last);
      status = list(first, end, 1);
      if (status.ok()) status = run_step(first, end, 1);
      gather.adds = true;
    }
    if constexpr (kWidened) {
      if (status.ok()) {
        status = Launch(kOp, SumKernel<T>, CeilDiv(image_size, kReduceThreads), kReduceThreads, 0,
                        stream, static_cast<const A*>(gather.sums), image_size, 1,
                        tensors.grad_inputs + image * image_size);
      }
    }
  }
  return status;
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_
