// Everything that a plan of a CUDA device is made of. Included once per element type: nvcc compiles
// these in parallel.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/deformable_conv2d/cuda_filters_gradient.h"
#include "kernels/deformable_conv2d/cuda_forward.h"
#include "kernels/deformable_conv2d/cuda_inputs_gradient.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& geometry, const CudaOptions& options)
    : geometry_(geometry), options_(options) {
  using A = ComputeType<T>;
  const Geometry& g = geometry_;
  if (g.output_pixels() == 0) return;
  Convolution c;
  DeviceLimits limits;
  status_ = MakeConvolution(g, &c);
  if (status_.ok()) status_ = GetDeviceLimits(kOp, options_, &limits);
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
  // For the same bits in every run, a block has all tiles of an image.
  const int64_t tiles = options_.deterministic
                            ? images_per_step_
                            : CeilDiv(images_per_step_ * g.output_size(), kScatterRows);
  const ChannelRanges ranges = ChooseRanges(c, kScatterChunk, tiles, multiprocessors_);
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

  // The gradient of the filters: as many splits of the pixels as fill the device once.
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
  const Status status = RunInputs(tensors, workspace, stream);
  return status.ok() ? RunFilters(tensors, workspace, stream) : status;
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_DRIVER_H_
