// CUDA kernels of the gradients of inputs, offsets and mask, and their launches.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/reduce.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

// How a launch of the gradient for the inputs cuts the work, and where it writes.
template <typename A>
struct InputsGradientJob {
  // A block has a range: some chunks of kColumns channels of a segment. Its tiles follow each
  // other.
  int32_t chunks_per_range, ranges_per_segment, ranges;
  int64_t tiles_per_block;
  int32_t held_taps;   // a block holds the sampling points of so many taps
  bool resident;       // all of a tile's grad_output is in shared memory, else a part at a time
  bool deterministic;  // one thread adds all that is added to an element
  A* grad_inputs;      // [images, H, W, C], images from first_image on
  int64_t first_image;
  // Gradients for (dy, dx, mask): [ranges, pixels, taps, 3], pixels from the launch's first one on;
  // null: there is one range to an offset group, which writes them itself.
  A* partials;
};

// What scattering reads of a SamplingPoint.
template <typename A>
struct alignas(8) ScatterPoint {
  A fraction_y, fraction_x, mask;
  int64_t packed;
};

inline constexpr int kScatterLanes = 16;    // so many threads scatter one pixel's chunk,
inline constexpr int kScatterChannels = 4;  // each so many channels of it
inline constexpr int kScatterChunk = kScatterLanes * kScatterChannels;

template <typename Tile>
struct InputsGradientShared {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  static constexpr int kDepth = kChunkBytes / sizeof(T);
  static constexpr int kRow = PaddedRow<T>(kDepth, false);
  static constexpr int kColumnsRow = Tile::kColumns + 8;
  TilePixel* pixels;        // [kRows]
  ScatterPoint<A>* points;  // [held taps, kRows]
  A* gradients;             // [held taps, kRows, 3]
  A* columns;               // [kRows, kColumnsRow]: ds
  T* grad_output;           // [chunks of filters or Tile::kStages, kRows, kRow]
  T* filters;               // [Tile::kStages, kColumns, kRow]
  int64_t bytes;

  TF_DEFORMABLE_HOST_DEVICE InputsGradientShared(char* memory, int held_taps,
                                                 int grad_output_chunks, bool depthwise) {
    SharedLayout layout(memory);
    pixels = layout.Take<TilePixel>(Tile::kRows);
    points = layout.Take<ScatterPoint<A>>(held_taps * Tile::kRows);
    gradients = layout.Take<A>(held_taps * Tile::kRows * 3);
    columns = layout.Take<A>(depthwise ? 0 : Tile::kRows * kColumnsRow);
    grad_output = layout.Take<T>(depthwise ? 0 : grad_output_chunks * Tile::kRows * kRow);
    filters = layout.Take<T>(depthwise ? 0 : Tile::kStages * Tile::kColumns * kRow);
    bytes = layout.size();
  }
};

// Four neighbouring channels, widened; zeros where there are none.
template <typename T, bool kVectors>
TF_DEFORMABLE_DEVICE void LoadFour(const T* from, bool present, int left,
                                   ComputeType<T> (&values)[kScatterChannels]) {
  using A = ComputeType<T>;
#pragma unroll
  for (int i = 0; i < kScatterChannels; ++i) values[i] = 0;
  if (!present || left <= 0) return;
  if constexpr (kVectors) {
    LoadRun<T, kScatterChannels>(from, values);
  } else {
#pragma unroll
    for (int i = 0; i < kScatterChannels; ++i) values[i] = i < left ? ToCompute(from[i]) : A{0};
  }
}

template <typename A, bool kVectors>
TF_DEFORMABLE_DEVICE void AddFour(A* to, int left, const A (&values)[kScatterChannels]) {
  if constexpr (kVectors) {
    AddRun<A, kScatterChannels>(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < kScatterChannels; ++i) {
      if (i < left) AtomicAdd(to + i, values[i]);
    }
  }
}

// A chunk of ds of one tap, for all pixels of a tile: added to dx at the corners (if the order does
// not matter), dotted with x there. get(row, i, values): ds of channels [i, i+4) of the chunk.
template <typename Tile, typename Get>
TF_DEFORMABLE_DEVICE void ScatterChunk(const Convolution& g, const typename Tile::T* inputs,
                                       const InputsGradientJob<ComputeType<typename Tile::T>>& job,
                                       const InputsGradientShared<Tile>& shared, int tap,
                                       int32_t channel, int width, const Get& get) {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  constexpr int kRowsAtOnce = kThreads / kScatterLanes;
  const int at = ThreadIndex() % kScatterLanes * kScatterChannels, left = width - at;
  const int first_row = ThreadIndex() / kScatterLanes;
  const int64_t row_size = static_cast<int64_t>(g.width) * g.channels;
  const int64_t origin = job.first_image * g.height * g.width;
  const auto scatter = [&](const ScatterPoint<A>& p, const A(&ds)[kScatterChannels]) {
    A weight[4];
    CornerWeights(p.fraction_y, p.fraction_x, p.mask, weight);
    A* const first = job.grad_inputs + ((p.packed >> 4) - origin) * g.channels + channel + at;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if ((p.packed >> j & 1) == 0 || left <= 0) continue;
      A values[kScatterChannels];
#pragma unroll
      for (int i = 0; i < kScatterChannels; ++i) values[i] = weight[j] * ds[i];
      AddFour<A, Tile::kVectors>(first + (j & 1) * g.channels + (j >> 1) * row_size, left, values);
    }
  };

#pragma unroll 2
  for (int row = first_row; row < Tile::kRows; row += kRowsAtOnce) {
    const ScatterPoint<A> p = shared.points[tap * Tile::kRows + row];
    const T* const first = inputs + (p.packed >> 4) * g.channels + channel + at;
    A ds[kScatterChannels], x[4][kScatterChannels], dots[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      LoadFour<T, Tile::kVectors>(first + (j & 1) * g.channels + (j >> 1) * row_size,
                                  (p.packed >> j & 1) != 0, left, x[j]);
    }
    get(row, at, ds);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      dots[j] = 0;
#pragma unroll
      for (int i = 0; i < kScatterChannels; ++i) {
        if (Tile::kVectors || i < left) dots[j] += ds[i] * x[j][i];
      }
      if (left <= 0 || (p.packed >> j & 1) == 0) dots[j] = 0;  // even if ds is infinite
    }
    const PointGradients<A> of_point =
        MakePointGradients(p.fraction_y, p.fraction_x, p.mask, dots[0], dots[1], dots[2], dots[3]);
    A gradients[3] = {of_point.y, of_point.x, of_point.mask};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int lanes = kScatterLanes / 2; lanes > 0; lanes /= 2) {
        gradients[i] += ShuffleXor(gradients[i], lanes);
      }
    }
    if (at == 0) {
      A* const sums = shared.gradients + (tap * Tile::kRows + row) * 3;
#pragma unroll
      for (int i = 0; i < 3; ++i) sums[i] += gradients[i];
    }
    if (!job.deterministic) scatter(p, ds);
  }
  // The device keeps the order of what one thread adds to one element.
  if (job.deterministic && first_row == 0) {
    for (int row = 0; row < Tile::kRows; ++row) {
      A ds[kScatterChannels];
      get(row, at, ds);
      scatter(shared.points[tap * Tile::kRows + row], ds);
    }
  }
}

// kDepthwise: each channel is a group of its own, with one filter; then there is no product.
template <typename Tile, bool kDepthwise>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void InputsGradientKernel(Convolution g, BackwardTensors<typename Tile::T> tensors,
                          InputsGradientJob<ComputeType<typename Tile::T>> job) {
  using T = typename Tile::T;
  using A = ComputeType<T>;
  using Shared = InputsGradientShared<Tile>;
  static_assert(Tile::kColumns == kScatterChunk, "what is multiplied is what is scattered");
  const int32_t filter_chunks = (g.group_filters + Shared::kDepth - 1) / Shared::kDepth;
  const Shared shared(SharedMemory(), job.held_taps, job.resident ? filter_chunks : Tile::kStages,
                      kDepthwise);
  const int thread = ThreadIndex(), warp = thread / 32, lane = thread % 32;
  const int32_t range = static_cast<int32_t>(BlockIndex() % job.ranges);
  const int64_t first_tile = BlockIndex() / job.ranges * job.tiles_per_block;
  const int32_t segment = range / job.ranges_per_segment;
  const int32_t first_chunk = range % job.ranges_per_segment * job.chunks_per_range;
  const int32_t chunks =
      Min(job.chunks_per_range, (g.segment + kScatterChunk - 1) / kScatterChunk - first_chunk);
  const int32_t first_channel = segment * g.segment + first_chunk * kScatterChunk;
  const int32_t offset_group = first_channel / g.offset_group_channels;
  const int32_t group = first_channel / g.group_channels;
  const int32_t left = g.segment - first_chunk * kScatterChunk;  // channels from the first one on

  for (int64_t tile = first_tile; tile < first_tile + job.tiles_per_block; ++tile) {
    SyncThreads();  // the last tile is done with
    if (thread < Tile::kRows) {
      shared.pixels[thread] = MakeTilePixel(g, PixelOfTile(g, tile, Tile::kRows, thread));
    }
    const auto copy_grad_output = [&](int32_t chunk, int buffer) {
      constexpr int kRowVectors = Shared::kDepth / Tile::kLanes;
      for (int i = thread; i < Tile::kRows * kRowVectors; i += kThreads) {
        const int row = i / kRowVectors, column = i % kRowVectors * Tile::kLanes;
        const int64_t pixel = shared.pixels[row].pixel;
        const int32_t at = chunk * Shared::kDepth + column;
        const T* const from =
            tensors.grad_output + pixel * g.filters + group * g.group_filters + at;
        T* const to = shared.grad_output + (buffer * Tile::kRows + row) * Shared::kRow + column;
        if constexpr (Tile::kVectors) {
          const bool present = pixel >= 0 && at < g.group_filters;
          CopyAsync16(to, present ? from : tensors.grad_output, present);
        } else {
#pragma unroll
          for (int k = 0; k < Tile::kLanes; ++k) {
            const bool present = pixel >= 0 && at + k < g.group_filters;
            to[k] = present ? from[k] : FromCompute<T>(0);
          }
        }
      }
    };
    if (!kDepthwise && job.resident) {
      SyncThreads();  // the pixels are there
      for (int32_t chunk = 0; chunk < filter_chunks; ++chunk) copy_grad_output(chunk, chunk);
      // Committed with the first filters.
    }

    for (int32_t first_tap = 0; first_tap < g.taps; first_tap += job.held_taps) {
      const int taps = Min(job.held_taps, g.taps - first_tap);
      SyncThreads();  // the pixels are there, the last taps are done with
      for (int i = thread; i < taps * Tile::kRows; i += kThreads) {
        const int row = i / taps, tap = i - row * taps;
        const TilePixel& pixel = shared.pixels[row];
        const Offset<A> offset =
            LoadOffset(g, tensors.offsets, tensors.mask, pixel, offset_group, first_tap + tap);
        const SamplingPoint<A> point = PointOf(g, pixel, first_tap + tap, offset);
        const int at = tap * Tile::kRows + row;
        shared.points[at] = {point.fraction_y, point.fraction_x, offset.mask,
                             PackCorners(g, pixel.image, point.pixel, point.corners)};
#pragma unroll
        for (int k = 0; k < 3; ++k) shared.gradients[at * 3 + k] = 0;
      }

      if constexpr (kDepthwise) {
        SyncThreads();  // the points are there
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
          for (int tap = 0; tap < taps; ++tap) {
            const int32_t channel = first_channel + chunk * kScatterChunk;
            const T* const filters =
                tensors.filters + static_cast<int64_t>(first_tap + tap) * g.channels + channel;
            const int width = left - chunk * kScatterChunk;
            ScatterChunk(g, tensors.inputs, job, shared, tap, channel, width,
                         [&](int row, int at, A(&ds)[kScatterChannels]) {
                           const int64_t pixel = shared.pixels[row].pixel;
                           A weights[kScatterChannels];
                           LoadFour<T, Tile::kVectors>(
                               tensors.grad_output + pixel * g.channels + channel + at, pixel >= 0,
                               width - at, ds);
                           LoadFour<T, Tile::kVectors>(filters + at, true, width - at, weights);
#pragma unroll
                           for (int i = 0; i < kScatterChannels; ++i) ds[i] *= weights[i];
                         });
          }
        }
      } else {
        // Chunks of channels, for each all taps, for each all chunks of filters.
        const int32_t turns = chunks * taps * filter_chunks;
        const auto copy = [&](int32_t turn) {
          if (turn < turns) {
            const int32_t product = turn / filter_chunks, part = turn - product * filter_chunks;
            const int32_t chunk = product / taps, tap = product - chunk * taps;
            const int64_t row = static_cast<int64_t>(first_tap + tap) * g.group_channels +
                                first_channel - group * g.group_channels + chunk * kScatterChunk;
            CopyTile<T, Tile::kColumns, Shared::kDepth, Tile::kVectors>(
                tensors.filters + row * g.filters + group * g.group_filters + part * Shared::kDepth,
                g.filters, left - chunk * kScatterChunk, g.group_filters - part * Shared::kDepth,
                shared.filters + turn % Tile::kStages * Tile::kColumns * Shared::kRow,
                Shared::kRow);
            if (!job.resident) copy_grad_output(part, turn % Tile::kStages);
          }
          CommitCopies();
        };
#pragma unroll
        for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy(stage);
        int32_t turn = 0;
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
          for (int tap = 0; tap < taps; ++tap) {
            typename Tile::Product product;
            product.Clear();
            for (int32_t part = 0; part < filter_chunks; ++part, ++turn) {
              WaitForCopies<Tile::kStages - 2>();
              SyncThreads();  // this turn's tiles and the points are there, the last ones were read
              copy(turn + Tile::kStages - 1);
              const int buffer = job.resident ? part : turn % Tile::kStages;
              const T* const a =
                  shared.grad_output + (buffer * Tile::kRows + Tile::FirstRow(warp)) * Shared::kRow;
              const T* const b =
                  shared.filters +
                  (turn % Tile::kStages * Tile::kColumns + Tile::FirstColumn(warp)) * Shared::kRow;
#pragma unroll
              for (int k = 0; k < Tile::kSteps; ++k) {
                constexpr int kDepth = Tile::Product::kDepth;
                product.template Step<Contiguous::kDepth, Contiguous::kDepth, false>(
                    a + k * kDepth, Shared::kRow, b + k * kDepth, Shared::kRow, lane);
              }
            }
            product.ForEachRun(lane, [&](int row, int run, const A* sums) {
              constexpr int kRun = Tile::Product::kRun;
              A* const to = shared.columns + (Tile::FirstRow(warp) + row) * Shared::kColumnsRow +
                            Tile::FirstColumn(warp) + run;
#pragma unroll
              for (int k = 0; k < kRun; ++k) to[k] = sums[k];
            });
            SyncThreads();  // ds is there; the next turn's barrier keeps it until it has been read
            ScatterChunk(g, tensors.inputs, job, shared, tap, first_channel + chunk * kScatterChunk,
                         left - chunk * kScatterChunk,
                         [&](int row, int at, A(&ds)[kScatterChannels]) {
                           const A* const from = shared.columns + row * Shared::kColumnsRow + at;
#pragma unroll
                           for (int i = 0; i < kScatterChannels; ++i) ds[i] = from[i];
                         });
          }
        }
      }

      SyncThreads();  // the gradients are there
      for (int i = thread; i < taps * Tile::kRows; i += kThreads) {
        const int row = i / taps, tap = i - row * taps;
        const int64_t pixel = shared.pixels[row].pixel;
        if (pixel < 0) continue;
        const A* const sums = shared.gradients + (tap * Tile::kRows + row) * 3;
        if (job.partials != nullptr) {
          const int64_t pixels = g.last_pixel - g.first_pixel;
          A* const to = job.partials +
                        ((range * pixels + pixel - g.first_pixel) * g.taps + first_tap + tap) * 3;
#pragma unroll
          for (int k = 0; k < 3; ++k) to[k] = sums[k];
        } else {
          const int64_t at = (pixel * g.offset_groups + offset_group) * g.taps + first_tap + tap;
          StoreSampling(tensors.grad_offsets, 2 * at, sums[0]);
          StoreSampling(tensors.grad_offsets, 2 * at + 1, sums[1]);
          if (tensors.grad_mask) StoreSampling(tensors.grad_mask, at, sums[2]);
        }
      }
    }
  }
}

// Adds up the ranges of each offset group, in their order. One thread to a sample.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void ReducePartialsKernel(Convolution g, const ComputeType<T>* partials, int32_t ranges,
                          SamplingTensor<T> grad_offsets, SamplingTensor<T> grad_mask) {
  using A = ComputeType<T>;
  const int64_t pixels = g.last_pixel - g.first_pixel;
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  if (i >= pixels * g.offset_groups * g.taps) return;
  const int64_t tap = i % g.taps, offset_group = i / g.taps % g.offset_groups;
  const int64_t pixel = i / g.taps / g.offset_groups;
  const int32_t ranges_per_group = ranges / g.offset_groups;
  A sums[3] = {};
  for (int32_t r = 0; r < ranges_per_group; ++r) {
    const A* const from =
        partials + (((offset_group * ranges_per_group + r) * pixels + pixel) * g.taps + tap) * 3;
#pragma unroll
    for (int k = 0; k < 3; ++k) sums[k] += from[k];
  }
  const int64_t at = g.first_pixel * g.offset_groups * g.taps + i;
  StoreSampling(grad_offsets, 2 * at, sums[0]);
  StoreSampling(grad_offsets, 2 * at + 1, sums[1]);
  if (grad_mask) StoreSampling(grad_mask, at, sums[2]);
}

// --- Launching -----------------------------------------------------------------------------------

template <typename T>
Status BackwardPlan<T>::RunInputs(const BackwardTensors<T>& tensors, void* workspace,
                                  void* stream) const {
  using A = ComputeType<T>;
  constexpr bool kWidened = !std::is_same_v<T, A>;
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  const int64_t image_size = g.height * g.width * g.channels;
  if (!kWidened || g.output_pixels() == 0) {
    const Status status =
        FillZeros(kOp, tensors.grad_inputs, g.batch * image_size * sizeof(T), stream);
    if (!status.ok() || g.output_pixels() == 0) return status;
  }
  Convolution c;
  if (const Status status = MakeConvolution(g, &c); !status.ok()) return status;
  // Scattering reads four channels at a time.
  const bool vectorised =
      IsVectorised(c, depthwise_, std::max<int>(16 / sizeof(T), kScatterChannels),
                   {tensors.inputs, tensors.filters, tensors.grad_output, tensors.grad_inputs});
  const bool reduces = ranges_ > g.offset_groups;

  InputsGradientJob<A> job;
  job.chunks_per_range = chunks_per_range_;
  job.ranges_per_segment = ranges_per_segment_;
  job.ranges = ranges_;
  job.deterministic = options_.deterministic;
  job.partials =
      reduces ? reinterpret_cast<A*>(static_cast<char*>(workspace) + partials_at_) : nullptr;
  const auto launch = [&](auto tile, auto depthwise) {
    using Tile = decltype(tile);
    using Shared = InputsGradientShared<Tile>;
    const int chunks = static_cast<int>(CeilDiv(c.group_filters, Shared::kDepth));
    // Best is to hold all of grad_output and still have two blocks on a multiprocessor; at least,
    // a block must fit.
    job.held_taps = std::min(kMostHeldTaps, c.taps);
    const auto bytes_of = [&](bool resident) {
      return Shared(nullptr, job.held_taps, resident ? chunks : Tile::kStages, depthwise()).bytes;
    };
    job.resident = bytes_of(true) <= shared_bytes_for_two_;
    while (bytes_of(job.resident) > shared_bytes_ && job.held_taps > 1) --job.held_taps;
    const int64_t bytes = bytes_of(job.resident);
    int64_t blocks;
    if (options_.deterministic) {
      // All tiles of an image, which is why a tile must not reach into the next one.
      c.tile_columns = 8;
      c.tile_rows = Tile::kRows / c.tile_columns;
      job.tiles_per_block =
          CeilDiv(c.output_height, c.tile_rows) * CeilDiv(c.output_width, c.tile_columns);
      blocks = CeilDiv(c.last_pixel - c.first_pixel, g.output_size());
    } else {
      job.tiles_per_block = 1;
      blocks = ChooseTiles(Tile::kRows, &c);
    }
    return Launch(kOp, InputsGradientKernel<Tile, decltype(depthwise)::value>, blocks * job.ranges,
                  kThreads, bytes, stream, c, tensors, job);
  };

  for (int64_t image = 0; image < g.batch; image += images_per_step_) {
    const int64_t images = std::min(images_per_step_, g.batch - image);
    job.first_image = image;
    if constexpr (kWidened) {
      job.grad_inputs = static_cast<A*>(workspace);
      const Status status =
          FillZeros(kOp, job.grad_inputs, images * image_size * sizeof(A), stream);
      if (!status.ok()) return status;
    } else {
      job.grad_inputs = tensors.grad_inputs + image * image_size;
    }
    const int64_t first = image * g.output_size(), last = first + images * g.output_size();
    const int64_t step =
        pixels_per_step_ < g.output_size() ? pixels_per_step_ : images * g.output_size();
    for (c.first_pixel = first; c.first_pixel < last; c.first_pixel += step) {
      c.last_pixel = std::min(c.first_pixel + step, last);
      Status status = WithTile<T, kScatterRows, kScatterChunk, 32, 16>(
          UsesFma<T>(options_), vectorised, [&](auto tile) {
            return depthwise_ ? launch(tile, std::true_type()) : launch(tile, std::false_type());
          });
      if (reduces) {
        const int64_t samples = (c.last_pixel - c.first_pixel) * g.offset_groups * g.taps();
        if (status.ok()) {
          status = Launch(kOp, ReducePartialsKernel<T>, CeilDiv(samples, kThreads), kThreads, 0,
                          stream, c, static_cast<const A*>(job.partials), ranges_,
                          tensors.grad_offsets, tensors.grad_mask);
        }
      }
      if (!status.ok()) return status;
    }
    if constexpr (kWidened) {
      const Status status =
          Launch(kOp, SumKernel<T>, CeilDiv(images * image_size, kReduceThreads), kReduceThreads, 0,
                 stream, static_cast<const A*>(job.grad_inputs), images * image_size, 1,
                 tensors.grad_inputs + image * image_size);
      if (!status.ok()) return status;
    }
  }
  return Status();
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_
