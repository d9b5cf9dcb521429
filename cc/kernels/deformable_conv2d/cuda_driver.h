// Cuts deformable convolutions into launches of the CUDA kernels. Included once per element type:
// nvcc compiles these in parallel.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/deformable_conv2d/cuda_kernels.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

inline constexpr char kOp[] = "deformable_conv2d";

// Fills `convolution`, or says what does not fit into the kernels' 32-bit numbers. The number of
// elements of a tensor has no such limit.
inline Status MakeConvolution(const Geometry& g, Convolution* convolution) {
  constexpr int64_t kMost = 1 << 30;
  constexpr int64_t kMostPixels = 1 << 24;  // along an axis: exact as float
  const int64_t reach_y = g.output_height * g.stride_y + g.kernel_height * g.dilation_y + g.pad_top;
  const int64_t reach_x = g.output_width * g.stride_x + g.kernel_width * g.dilation_x + g.pad_left;
  const bool fits = g.height <= kMostPixels && g.width <= kMostPixels &&
                    g.height * g.width <= kMost && g.output_size() <= kMost && g.batch <= kMost &&
                    reach_y <= kMost && reach_x <= kMost && g.taps() <= kMost &&
                    g.channels <= kMost && g.filters <= kMost && g.offset_groups <= kMost;
  if (!fits) {
    return Status(Status::Code::kTooLarge,
                  std::string(kOp) +
                      ": a GPU takes images, outputs and strides of at most 2^30 pixels, and 2^24 "
                      "along an axis, got images of " +
                      ToString({g.height, g.width}) + " and an output of " +
                      ToString({g.output_height, g.output_width}));
  }
  Convolution& c = *convolution;
  c.height = g.height;
  c.width = g.width;
  c.channels = g.channels;
  c.filters = g.filters;
  c.output_height = g.output_height;
  c.output_width = g.output_width;
  c.first_pixel = 0;
  c.last_pixel = g.output_pixels();
  c.kernel_width = g.kernel_width;
  c.taps = g.taps();
  c.stride_y = g.stride_y;
  c.stride_x = g.stride_x;
  c.dilation_y = g.dilation_y;
  c.dilation_x = g.dilation_x;
  c.pad_top = g.pad_top;
  c.pad_left = g.pad_left;
  c.offset_groups = g.offset_groups;
  c.group_channels = g.group_channels();
  c.group_filters = g.group_filters();
  c.offset_group_channels = g.offset_group_channels();
  c.segment = g.is_depthwise() ? g.offset_group_channels()
                               : std::gcd(g.group_channels(), g.offset_group_channels());
  c.tile_rows = c.tile_columns = 0;
  return Status();
}

// Cuts the output into tiles of `size` pixels and returns how many. Square ones read fewer
// different pixels, if not too much of them lies outside.
inline int64_t ChooseTiles(int size, Convolution* c) {
  constexpr double kMostWaste = 1.1;
  const int64_t image_size = static_cast<int64_t>(c->output_height) * c->output_width;
  const int64_t pixels = c->last_pixel - c->first_pixel, images = pixels / image_size;
  c->tile_rows = c->tile_columns = 0;
  if (pixels % image_size != 0) return CeilDiv(pixels, size);
  for (int columns = 8; columns <= size / 2; columns *= 2) {
    const int64_t down = CeilDiv(c->output_height, size / columns);
    const int64_t across = CeilDiv(c->output_width, columns);
    if (down * across * size <= kMostWaste * c->output_height * c->output_width) {
      c->tile_rows = size / columns;
      c->tile_columns = columns;
      return images * down * across;
    }
  }
  return CeilDiv(pixels, size);
}

// Whether runs of channels and filters can be read `lanes` elements, 16 bytes, at a time.
inline bool IsVectorised(const Convolution& c, bool depthwise, int lanes,
                         std::initializer_list<const void*> tensors) {
  for (const void* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return false;
  }
  return c.segment % lanes == 0 && (depthwise || c.group_filters % lanes == 0);
}

// A sampled value costs about as much as multiplying it with so many filters.
inline constexpr int64_t kSamplingCost = 128;

// Estimated time of a forward pass that is cut into such tiles.
template <typename Tile>
int64_t ForwardCost(const Convolution& c, int multiprocessors) {
  Convolution copy = c;
  const int64_t column_tiles = CeilDiv(c.group_filters, Tile::kColumns);
  const int64_t blocks =
      ChooseTiles(Tile::kRows, &copy) * column_tiles * (c.channels / c.group_channels);
  return CeilDiv(blocks, multiprocessors) * Tile::kRows * (kSamplingCost + Tile::kColumns);
}

template <typename Tile>
Status LaunchForward(Convolution c, const ForwardTensors<typename Tile::T>& tensors, void* stream) {
  const int32_t column_tiles = CeilDiv(c.group_filters, Tile::kColumns);
  const int64_t tiles = ChooseTiles(Tile::kRows, &c);
  const ForwardShared<Tile> shared(nullptr, c.taps);
  return Launch(kOp, ForwardKernel<Tile>, tiles * (c.channels / c.group_channels) * column_tiles,
                kThreads, shared.bytes, stream, c, tensors, column_tiles);
}

// The cheapest of some tiles.
template <typename First, typename... Others>
Status LaunchCheapestForward(const Convolution& c, const DeviceLimits& limits,
                             const ForwardTensors<typename First::T>& tensors, void* stream) {
  using T = typename First::T;
  Status (*launch)(Convolution, const ForwardTensors<T>&, void*) = nullptr;
  int64_t least = std::numeric_limits<int64_t>::max();
  const auto consider = [&](int64_t cost, int64_t bytes, auto* candidate) {
    if (cost >= least || bytes > limits.shared_bytes_per_block) return;
    least = cost;
    launch = candidate;
  };
  consider(ForwardCost<First>(c, limits.multiprocessors),
           ForwardShared<First>(nullptr, c.taps).bytes, &LaunchForward<First>);
  (consider(ForwardCost<Others>(c, limits.multiprocessors),
            ForwardShared<Others>(nullptr, c.taps).bytes, &LaunchForward<Others>),
   ...);
  return launch(c, tensors, stream);
}

// Shares of a segment's chunks, so that there are enough blocks to keep all multiprocessors busy.
inline DepthwiseRanges ChooseRanges(const Convolution& c, int chunk, int64_t tiles,
                                    int multiprocessors) {
  constexpr int64_t kBlocksWanted = 4;  // on each multiprocessor, two of which run at once
  const int64_t segments = c.channels / c.segment, chunks = CeilDiv(c.segment, chunk);
  const int64_t wanted = CeilDiv(kBlocksWanted * multiprocessors, tiles * segments);
  DepthwiseRanges ranges;
  ranges.chunks_per_range = CeilDiv(chunks, std::min(wanted, chunks));
  ranges.ranges_per_segment = CeilDiv(chunks, ranges.chunks_per_range);
  ranges.ranges = ranges.ranges_per_segment * segments;
  return ranges;
}

template <typename T, bool kVectors>
Status LaunchDepthwiseForward(Convolution c, int multiprocessors, const ForwardTensors<T>& tensors,
                              void* stream) {
  const int64_t tiles = ChooseTiles(kDepthwisePixels, &c);
  const DepthwiseRanges ranges = ChooseRanges(c, kChunkBytes / sizeof(T), tiles, multiprocessors);
  const DepthwiseShared<T> shared(nullptr, c.taps);
  return Launch(kOp, DepthwiseForwardKernel<T, kVectors>, tiles * ranges.ranges, kThreads,
                shared.bytes, stream, c, tensors, ranges);
}

// What is computed with plain multiply-adds.
template <typename T>
bool IsExact(const CudaOptions& options) {
  return std::is_same_v<T, double> || (std::is_same_v<T, float> && !options.tensor_float_32);
}

// Calls function(Tile) with the tile of that kind: on the tensor cores or not, reading 16 bytes at
// a time or not.
template <typename T, int kRows, int kColumns, int kWarpRows, int kWarpColumns, typename F>
Status WithTile(bool exact, bool vectorised, const F& function) {
  if constexpr (sizeof(T) >= 4) {
    if (exact) {
      if (vectorised) {
        return function(Tile<T, true, kRows, kColumns, kWarpRows, kWarpColumns, true>());
      }
      return function(Tile<T, true, kRows, kColumns, kWarpRows, kWarpColumns, false>());
    }
  }
  if constexpr (!std::is_same_v<T, double>) {
    if (vectorised) {
      return function(Tile<T, false, kRows, kColumns, kWarpRows, kWarpColumns, true>());
    }
    return function(Tile<T, false, kRows, kColumns, kWarpRows, kWarpColumns, false>());
  }
  return Status();
}

// Bounds of the parts of the workspace.
inline constexpr int64_t kInputsGradientBytes = 32 << 20;
inline constexpr int64_t kPartialsBytes = 16 << 20;
inline constexpr int64_t kFiltersPartialsBytes = 48 << 20;

inline constexpr int kScatterRows = 64;  // pixels of a tile of the gradient for the inputs

template <typename T>
Status ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, void*, void* stream) const {
  if (geometry_.output_pixels() == 0) return Status();
  Convolution c;
  Status status = MakeConvolution(geometry_, &c);
  DeviceLimits limits;
  if (status.ok()) status = GetDeviceLimits(kOp, &limits);
  if (!status.ok()) return status;
  const bool depthwise = geometry_.is_depthwise();
  const bool vectorised =
      IsVectorised(c, depthwise, 16 / sizeof(T), {tensors.inputs, tensors.filters, tensors.output});
  if (depthwise && DepthwiseShared<T>(nullptr, c.taps).bytes <= limits.shared_bytes_per_block) {
    return (vectorised
                ? LaunchDepthwiseForward<T, true>
                : LaunchDepthwiseForward<T, false>)(c, limits.multiprocessors, tensors, stream);
  }
  if (depthwise) c.segment = 1;  // of the general kernels
  const bool exact = IsExact<T>(options_);
  if constexpr (!std::is_same_v<T, double>) {
    if (!exact && vectorised && !depthwise) {
      return LaunchCheapestForward<
          Tile<T, false, 64, 64, 32, 16, true>, Tile<T, false, 64, 128, 32, 32, true>,
          Tile<T, false, 128, 64, 32, 32, true>, Tile<T, false, 128, 128, 64, 32, true>,
          Tile<T, false, 128, 256, 64, 64, true>>(c, limits, tensors, stream);
    }
  }
  return WithTile<T, 64, 64, 32, 16>(exact, vectorised && !depthwise, [&](auto tile) {
    return LaunchForward<decltype(tile)>(c, tensors, stream);
  });
}

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& geometry, const CudaOptions& options)
    : geometry_(geometry), options_(options) {
  using A = ComputeType<T>;
  const Geometry& g = geometry_;
  if (g.output_pixels() == 0) return;
  Convolution c;
  DeviceLimits limits;
  status_ = MakeConvolution(g, &c);
  if (status_.ok()) status_ = GetDeviceLimits(kOp, &limits);
  if (!status_.ok()) return;
  multiprocessors_ = limits.multiprocessors;
  shared_bytes_ = limits.shared_bytes_per_block;
  shared_bytes_for_two_ = limits.shared_bytes_per_multiprocessor / 2 - 1024;
  depthwise_ = g.is_depthwise();

  const int64_t image_size = g.height * g.width * g.channels;
  const bool widened = !std::is_same_v<T, A>;
  const int64_t image_bytes = widened ? image_size * static_cast<int64_t>(sizeof(A)) : 0;
  images_per_step_ =
      std::clamp<int64_t>(kInputsGradientBytes / std::max<int64_t>(image_bytes, 1), 1, g.batch);
  // In order, a block has all tiles of an image.
  const int64_t tiles = options_.deterministic
                            ? images_per_step_
                            : CeilDiv(images_per_step_ * g.output_size(), kScatterRows);
  const DepthwiseRanges ranges = ChooseRanges(c, kScatterChunk, tiles, multiprocessors_);
  chunks_per_range_ = ranges.chunks_per_range;
  ranges_per_segment_ = ranges.ranges_per_segment;
  ranges_ = ranges.ranges;
  const bool reduces = ranges_ > g.offset_groups;
  const int64_t pixel_bytes =
      reduces ? ranges_ * g.taps() * 3 * static_cast<int64_t>(sizeof(A)) : 0;
  const int64_t most_pixels = kPartialsBytes / std::max<int64_t>(pixel_bytes, 1);
  pixels_per_step_ = g.output_size();
  if (most_pixels < images_per_step_ * g.output_size()) {
    images_per_step_ = std::max<int64_t>(most_pixels / g.output_size(), 1);
    if (most_pixels < g.output_size()) {
      pixels_per_step_ = std::max<int64_t>(most_pixels / kScatterRows, 1) * kScatterRows;
    }
  }
  partials_at_ = CeilDiv(images_per_step_ * image_bytes, 256) * 256;
  workspace_bytes_ = partials_at_ + images_per_step_ * pixels_per_step_ * pixel_bytes;

  // Segments of the pixels: as many as fill the device once.
  const int64_t filters_bytes =
      g.taps() * g.group_channels() * g.filters * static_cast<int64_t>(sizeof(A));
  const int64_t most_splits = std::max<int64_t>(kFiltersPartialsBytes / filters_bytes, 1);
  int64_t blocks;  // of one split
  if (depthwise_) {
    blocks = g.taps() * (g.channels / c.segment) *
             CeilDiv(c.segment, kChunkBytes / static_cast<int64_t>(sizeof(T)));
  } else {
    const int64_t slots =
        g.taps() * (c.group_channels / c.segment) * CeilDiv(c.segment, kSlotChannels);
    blocks = g.groups * CeilDiv(slots, 2) * CeilDiv(c.group_filters, 128);
  }
  const int64_t wanted = std::max<int64_t>(2 * multiprocessors_ / blocks, 1);
  const int64_t most_useful = CeilDiv(g.output_pixels(), depthwise_ ? 256 : 512);
  splits_ = std::min({wanted, most_splits, most_useful});
  const bool adds_up = splits_ > 1 || depthwise_;
  workspace_bytes_ = std::max(workspace_bytes_, adds_up ? splits_ * filters_bytes : 0);
}

template <typename T>
Status BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, void* workspace,
                            void* stream) const {
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  const int64_t inputs_bytes = g.batch * g.height * g.width * g.channels * sizeof(T);
  if (std::is_same_v<T, ComputeType<T>> || g.output_pixels() == 0) {
    const Status status = FillZeros(kOp, tensors.grad_inputs, inputs_bytes, stream);
    if (!status.ok()) return status;
  }
  if (g.output_pixels() == 0) {
    const int64_t filters_bytes = g.taps() * g.group_channels() * g.filters * sizeof(T);
    return FillZeros(kOp, tensors.grad_filters, filters_bytes, stream);
  }
  const Status status = RunInputs(tensors, workspace, stream);
  return status.ok() ? RunFilters(tensors, workspace, stream) : status;
}

template <typename T>
Status BackwardPlan<T>::RunInputs(const BackwardTensors<T>& tensors, void* workspace,
                                  void* stream) const {
  using A = ComputeType<T>;
  constexpr bool kWidened = !std::is_same_v<T, A>;
  const Geometry& g = geometry_;
  const int64_t image_size = g.height * g.width * g.channels;
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
  job.in_order = options_.deterministic;
  job.partials =
      reduces ? reinterpret_cast<A*>(static_cast<char*>(workspace) + partials_at_) : nullptr;
  const auto launch = [&](auto tile, auto depthwise) {
    using Tile = decltype(tile);
    using Shared = InputsGradientShared<Tile>;
    const int chunks = static_cast<int>(CeilDiv(c.group_filters, Shared::kDepth));
    // Best is to hold all of grad_output and still have two blocks on a multiprocessor; at least,
    // a block must fit.
    job.block_taps = std::min(kTapBlock, c.taps);
    const auto bytes_of = [&](bool resident) {
      return Shared(nullptr, job.block_taps, resident ? chunks : Tile::kStages, depthwise()).bytes;
    };
    job.resident = bytes_of(true) <= shared_bytes_for_two_;
    while (bytes_of(job.resident) > shared_bytes_ && job.block_taps > 1) --job.block_taps;
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
          IsExact<T>(options_), vectorised, [&](auto tile) {
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
          Launch(kOp, SumKernel<T>, CeilDiv(images * image_size, kThreads), kThreads, 0, stream,
                 static_cast<const A*>(job.grad_inputs), images * image_size, 1,
                 tensors.grad_inputs + image * image_size);
      if (!status.ok()) return status;
    }
  }
  return Status();
}

template <typename T>
Status BackwardPlan<T>::RunFilters(const BackwardTensors<T>& tensors, void* workspace,
                                   void* stream) const {
  using A = ComputeType<T>;
  const Geometry& g = geometry_;
  Convolution c;
  if (const Status status = MakeConvolution(g, &c); !status.ok()) return status;
  A* const partials = splits_ > 1 || depthwise_ ? static_cast<A*>(workspace) : nullptr;
  const bool vectorised = IsVectorised(c, depthwise_, 16 / sizeof(T),
                                       {tensors.inputs, tensors.grad_output, tensors.grad_filters});
  Status status;
  if (depthwise_) {
    const int64_t blocks = g.taps() * (g.channels / c.segment) *
                           CeilDiv(c.segment, kChunkBytes / static_cast<int64_t>(sizeof(T)));
    const int64_t pixels =
        CeilDiv(CeilDiv(g.output_pixels(), splits_), kDepthwisePixels) * kDepthwisePixels;
    constexpr int kDepth = kChunkBytes / sizeof(T);
    status = Launch(kOp,
                    vectorised ? DepthwiseFiltersGradientKernel<T, true>
                               : DepthwiseFiltersGradientKernel<T, false>,
                    blocks * splits_, kThreads, kDepthwisePixels * kDepth * sizeof(A), stream, c,
                    tensors, pixels, partials);
  } else {
    status = WithTile<T, 2 * kSlotChannels, 64, 32, 32>(
        IsExact<T>(options_), vectorised, [&](auto small) {
          const auto launch = [&](auto tile) {
            using Tile = decltype(tile);
            using Shared = FiltersGradientShared<Tile>;
            FiltersGradientJob<A> job;
            job.slots = c.taps * (c.group_channels / c.segment) * CeilDiv(c.segment, kSlotChannels);
            job.slot_pairs = CeilDiv(job.slots, 2);
            job.column_tiles = CeilDiv(c.group_filters, Tile::kColumns);
            job.splits = splits_;
            job.pixels_per_split =
                CeilDiv(CeilDiv(g.output_pixels(), splits_), Shared::kPixels) * Shared::kPixels;
            job.partials = partials;
            return Launch(kOp, FiltersGradientKernel<Tile>,
                          g.groups * job.slot_pairs * job.column_tiles * splits_, kThreads,
                          Shared(nullptr).bytes, stream, c, tensors, job);
          };
          using Small = decltype(small);
          if constexpr (!Small::kExact && Small::kVectors) {
            using Medium = Tile<T, false, 2 * kSlotChannels, 128, 64, 32, true>;
            if (c.group_filters > 64) return launch(Medium());
          }
          return launch(small);
        });
  }
  if (!status.ok() || partials == nullptr) return status;
  const int64_t size = g.taps() * g.group_channels() * g.filters;
  return Launch(kOp, SumKernel<T>, CeilDiv(size, kThreads), kThreads, 0, stream,
                static_cast<const A*>(partials), size, splits_, tensors.grad_filters);
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_
