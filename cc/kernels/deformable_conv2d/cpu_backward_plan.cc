#include "kernels/deformable_conv2d/cpu_backward_plan.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/driver.h"
#include "kernels/deformable_conv2d/cpu_tiles.h"

namespace tf_deformable::deformable_conv2d::cpu {

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& geometry, int num_workers)
    : kernels_(TableKernels<T>()) {
  const bool depthwise = geometry.is_depthwise();
  const Geometry g = KernelGeometry(geometry);
  workspace_bytes_ =
      std::max(PlanFilters(g, depthwise, num_workers), PlanInputs(g, depthwise, num_workers)) *
      sizeof(ComputeType<T>);
}

template <typename T>
int64_t BackwardPlan<T>::PlanFilters(const Geometry& g, bool depthwise, int num_workers) {
  using A = ComputeType<T>;
  const int64_t lanes = kernels_.lanes;
  const int64_t depth = g.taps() * g.group_channels();
  // The filters are cut into blocks of whole taps (or parts of one) whose sums stay in the cache.
  // To keep the threads busy, the pixels are cut into as many splits as their sums leave room for.
  FiltersGradientJob<T>& f = filters_job_;
  f.geometry = g;
  f.depthwise = depthwise;
  f.filters_per_block = depthwise ? 1 : std::min<int64_t>(g.group_filters(), 512);
  f.filter_blocks = depthwise ? 1 : CeilDiv(g.group_filters(), f.filters_per_block);
  f.sums_row = depthwise ? 1 : RoundUp(f.filters_per_block, lanes);
  const int64_t most_rows =
      std::max<int64_t>(kSumsBytes / (f.sums_row * sizeof(A)) / lanes * lanes, lanes);
  const int64_t row_unit = most_rows < g.group_channels() ? lanes : g.group_channels();
  f.row_blocks = CeilDiv(depth, std::max(most_rows / row_unit * row_unit, row_unit));
  f.rows_per_block = std::min(RoundUp(CeilDiv(depth, f.row_blocks), row_unit), depth);
  f.row_blocks = CeilDiv(depth, f.rows_per_block);
  f.tile_pixels = TilePixels(kernels_, g.output_pixels(), 1, f.sums_row);
  f.panel_row = PanelRow<A>(std::min(f.rows_per_block, kLargestPanel));
  const int64_t blocks = g.groups * f.row_blocks * f.filter_blocks;
  const Together together(kernels_, g);
  f.groups_together = blocks == g.groups ? together.groups : 1;
  if (f.groups_together > 1) {
    f.group_row = together.group_row;
    f.panel_row = together.panel_row;
    // Twice the panel of the forward pass: the sums are read and written once for each tile.
    f.tile_pixels = std::min(f.tile_pixels, 2 * together.tile_pixels);
  }
  f.sums_size = f.rows_per_block * f.sums_row;
  const int64_t room = std::max<int64_t>(
      kPartialsBytes / (blocks * f.sums_size * static_cast<int64_t>(sizeof(A))), 1);
  const int64_t tiles = CeilDiv(g.output_pixels(), f.tile_pixels);
  f.splits = std::clamp<int64_t>(
      std::min({CeilDiv(2 * kUnitsWanted, blocks / f.groups_together), room, tiles}), 1,
      2 * kUnitsWanted);
  f.pixels_per_split = std::max<int64_t>(CeilDiv(tiles, f.splits), 1) * f.tile_pixels;
  f.splits = std::max<int64_t>(CeilDiv(g.output_pixels(), f.pixels_per_split), 1);
  Layout<A> filters_worker;
  f.panel_at = filters_worker.Add(depthwise ? 0 : f.tile_pixels * f.panel_row);
  f.packed_at = filters_worker.Add(depthwise ? 0 : f.tile_pixels * f.sums_row);
  f.sums_at = filters_worker.Add(f.splits > 1 ? 0 : f.groups_together * f.sums_size);
  f.pixels_at = filters_worker.AddBytes(RoundUp(f.tile_pixels, kernels_.lanes) * kPixelBytes<A>);
  f.samples_at = filters_worker.AddBytes(PanelSamples(g, lanes) * kSampleBytes<A>);
  filters_worker_size_ = filters_worker.size();
  Layout<A> filters;
  filters.Add(f.splits > 1 ? blocks * f.splits * f.sums_size : 0);
  filters_worker_at_ = filters.Add(num_workers * filters_worker_size_);
  return filters.size();
}

template <typename T>
int64_t BackwardPlan<T>::PlanInputs(const Geometry& g, bool depthwise, int num_workers) {
  using A = ComputeType<T>;
  const int64_t lanes = kernels_.lanes;

  // No channel block straddles a group or an offset group.
  InputsGradientJob<T>& job = inputs_job_;
  job.geometry = g;
  job.depthwise = depthwise;
  // To scatter a sample takes as long before its channels as 64 of them, without a product.
  const int64_t most_channels = kLargestPanel / 2, fewest_channels = depthwise ? most_channels : 64;
  const int64_t widest = std::clamp<int64_t>(
      RoundUp(CeilDiv(g.batch * g.channels, kUnitsWanted), lanes), fewest_channels, most_channels);
  const int64_t most_packed = kPackedBytes / static_cast<int64_t>(sizeof(A));
  int64_t packed = 0, largest_slab = 0, widest_block = 0, most_filters = 0;
  for (int64_t first = 0; first < g.channels;) {
    ChannelBlock block;
    block.first = first;
    block.group = first / g.group_channels();
    block.offset_group = first / g.offset_group_channels();
    const int64_t most =
        std::min(widest, (block.offset_group + 1) * g.offset_group_channels() - first);
    const int64_t left = (block.group + 1) * g.group_channels() - first;
    block.width = std::min(most, left);
    block.groups = 1;
    if (left == g.group_channels() && left < most) {
      block.groups = std::clamp<int64_t>(kLargestPanel / std::max<int64_t>(g.group_filters(), 1), 1,
                                         most / left);
      block.width = block.groups * left;
    }
    block.packed_at = packed;
    const int64_t group_columns = RoundUp(block.width / block.groups, lanes);
    const int64_t block_filters = block.groups * g.group_filters();
    const int64_t size = depthwise ? 0 : g.taps() * block_filters * group_columns;
    const int64_t index = blocks_.size();
    const int64_t slab_start = slabs_.empty() ? 0 : blocks_[slabs_.back().first_block].packed_at;
    if (slabs_.empty() || packed + size - slab_start > most_packed) {
      // A block too large for a slab is packed some taps at a time.
      const int64_t taps =
          std::clamp<int64_t>(most_packed / std::max<int64_t>(size / g.taps(), 1), 1, g.taps());
      for (int64_t tap = 0; tap < g.taps(); tap += taps) {
        slabs_.push_back({index, index + 1, tap, std::min(tap + taps, g.taps())});
      }
      largest_slab = std::max(largest_slab, size / g.taps() * taps);
    } else {
      slabs_.back().last_block = index + 1;
      largest_slab = std::max(largest_slab, packed + size - slab_start);
    }
    packed += size;
    blocks_.push_back(block);
    // The last group's columns may fill up a vector.
    const int64_t block_columns = block.width - block.width / block.groups + group_columns;
    widest_block = std::max(widest_block, RoundUp(block_columns, lanes));
    most_filters = std::max(most_filters, depthwise ? 1 : block_filters);
    first += block.width;
  }
  job.num_blocks = blocks_.size();

  const int64_t pixel_partials = job.num_blocks * g.taps() * 3 * sizeof(A);
  const int64_t pixels = std::max<int64_t>(kPartialsBytes / pixel_partials, 1);
  const int64_t images = std::max<int64_t>(g.batch, 1);
  const int64_t size = std::max<int64_t>(g.output_size(), 1);
  // A step has whole images if they fit, else parts of as many as keep the threads busy.
  images_per_step_ = std::clamp<int64_t>(
      std::max(pixels / size, CeilDiv(kUnitsWanted, job.num_blocks)), 1, images);
  pixels_per_step_ = std::clamp<int64_t>(pixels / images_per_step_, 1, size);

  job.tile_pixels = TilePixels(kernels_, pixels_per_step_, 1, std::max(widest_block, most_filters));
  // Nothing is read for all of a tile; low ones can be cut into more splits.
  if (depthwise) job.tile_pixels = std::min(job.tile_pixels, kDepthwiseTileVectors * lanes);
  if (pixels_per_step_ < size) {
    pixels_per_step_ = RoundUp(pixels_per_step_, job.tile_pixels);
  }
  // If that leaves threads without work, the pixels are cut into splits.
  const int64_t step_images = std::min(images_per_step_, g.batch);
  const int64_t units = step_images * job.num_blocks;
  job.split_size = step_images * g.height * g.width * g.channels;
  job.splits = 1;
  if (units > 0 && job.split_size > 0) {
    const int64_t room = kSplitsBytes / (job.split_size * static_cast<int64_t>(sizeof(A)));
    job.splits =
        std::clamp<int64_t>(std::min({CeilDiv(kUnitsWanted, units), 1 + room,
                                      CeilDiv(pixels_per_step_, job.tile_pixels * kSplitTiles)}),
                            1, kUnitsWanted);
  }
  const int64_t part_channels = PlanParts(g, num_workers);
  job.columns_row = widest_block;
  Layout<A> inputs_worker;
  job.upstream_row = PanelRow<A>(std::max(widest_block, most_filters));
  job.upstream_at = inputs_worker.Add(depthwise ? 0 : job.tile_pixels * job.upstream_row);
  job.columns_at = inputs_worker.Add(depthwise ? 0 : job.tile_pixels * job.columns_row);
  job.discard_at = inputs_worker.Add(widest_block);
  job.pixels_at = inputs_worker.AddBytes(RoundUp(job.tile_pixels, kernels_.lanes) * kPixelBytes<A>);
  job.samples_at = inputs_worker.AddBytes(lanes * kSampleBytes<A>);
  inputs_worker_size_ = inputs_worker.size();

  Layout<A> inputs;
  packed_at_ = inputs.Add(largest_slab);
  partials_at_ = inputs.Add(images_per_step_ * job.num_blocks * pixels_per_step_ * g.taps() * 3);
  unfinished_at_ = inputs.Add(has_unfinished_ ? size * g.taps() * 3 : 0);
  grad_inputs_at_ = inputs.Add(kHasWiderSums<T> ? std::min(images_per_part_, g.batch) * g.height *
                                                      g.width * part_channels
                                                : 0);
  split_sums_at_ = inputs.Add((job.splits - 1) * job.split_size);
  inputs_worker_at_ = inputs.Add(num_workers * inputs_worker_size_);
  return inputs.size();
}

// Sums that are rounded are held for some units at a time, as few as keep these threads busy. What
// is added up, and in which order, does not depend on that.
template <typename T>
int64_t BackwardPlan<T>::PlanParts(const Geometry& g, int num_workers) {
  using A = ComputeType<T>;
  const int64_t num_blocks = inputs_job_.num_blocks;
  images_per_part_ = images_per_step_;
  blocks_per_part_ = num_blocks;
  // Splits are for where the units are too few as it is.
  if (!kHasWiderSums<T> || inputs_job_.splits > 1) return g.channels;
  int64_t widest = 0;
  for (const ChannelBlock& block : blocks_) widest = std::max(widest, block.width);
  const int64_t unit_size = std::max<int64_t>(g.height * g.width * widest, 1);
  const int64_t fitting = kRoundedBytes / (unit_size * static_cast<int64_t>(sizeof(A)));
  images_per_part_ =
      std::min(std::max(fitting / num_blocks, CeilDiv(num_workers, num_blocks)), images_per_step_);
  const int64_t units = std::max<int64_t>(fitting, num_workers);
  if (units >= num_blocks) return g.channels;

  const int64_t blocks = CeilDiv(num_blocks, CeilDiv(num_blocks, units));
  int64_t part_channels = 0;
  bool has_unfinished = false;
  for (int64_t first = 0; first < num_blocks; first += blocks) {
    const int64_t last = std::min(first + blocks, num_blocks);
    part_channels = std::max(part_channels, ChannelsOf(first, last));
    has_unfinished |=
        last < num_blocks && blocks_[last - 1].offset_group == blocks_[last].offset_group;
  }
  // Kernels of many taps may have more to keep of an offset group than the other blocks are.
  const int64_t unfinished = has_unfinished ? g.output_size() * g.taps() * 3 : 0;
  if (g.height * g.width * (g.channels - part_channels) <= unfinished) return g.channels;
  blocks_per_part_ = blocks;
  has_unfinished_ = has_unfinished;
  return part_channels;
}

template <typename T>
int64_t BackwardPlan<T>::ChannelsOf(int64_t first_block, int64_t last_block) const {
  const ChannelBlock& last = blocks_[last_block - 1];
  return last.first + last.width - blocks_[first_block].first;
}

template <typename T>
void BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, Executor& executor,
                          void* workspace) const {
  RunFilters(tensors, executor, static_cast<ComputeType<T>*>(workspace));
  RunInputs(tensors, executor, static_cast<ComputeType<T>*>(workspace));
}

template <typename T>
void BackwardPlan<T>::RunFilters(const BackwardTensors<T>& tensors, Executor& executor,
                                 ComputeType<T>* workspace) const {
  using A = ComputeType<T>;
  const Geometry& g = filters_job_.geometry;
  if (g.output_pixels() == 0) {
    const int64_t row_filters = filters_job_.depthwise ? 1 : g.filters;
    const int64_t size = g.taps() * g.group_channels() * row_filters;
    std::memset(static_cast<void*>(tensors.grad_filters), 0, size * sizeof(T));
    return;
  }
  FiltersGradientJob<T> job = filters_job_;
  job.tensors = tensors;
  job.sums = workspace;
  A* const worker_space = workspace + filters_worker_at_;
  const auto gradient = job.depthwise             ? kernels_.depthwise_filters_gradient
                        : job.groups_together > 1 ? kernels_.filters_gradient_together
                                                  : kernels_.filters_gradient;
  const int64_t blocks = g.groups * job.row_blocks * job.filter_blocks;
  ForEach(
      executor, blocks / job.groups_together * job.splits,
      2 * job.pixels_per_split * job.groups_together * job.rows_per_block * job.filters_per_block,
      [&](int64_t unit, int worker) {
        gradient(job, unit, worker_space + worker * filters_worker_size_);
      });
  if (job.splits == 1) return;
  ForEach(executor, blocks, job.splits * job.rows_per_block * job.filters_per_block,
          [&](int64_t block, int) { kernels_.reduce_splits(job, block); });
}

template <typename T>
void BackwardPlan<T>::RunInputs(const BackwardTensors<T>& tensors, Executor& executor,
                                ComputeType<T>* workspace) const {
  using A = ComputeType<T>;
  const Geometry& g = inputs_job_.geometry;
  if (g.batch == 0) return;  // without images, their size may be anything
  const int64_t image_size = g.height * g.width * g.channels;
  InputsGradientJob<T> job = inputs_job_;
  job.tensors = tensors;
  job.blocks = blocks_.data();
  job.packed_filters = workspace + packed_at_;
  job.partials = workspace + partials_at_;
  job.unfinished = workspace + unfinished_at_;
  job.split_sums = workspace + split_sums_at_;
  A* const worker_space = workspace + inputs_worker_at_;
  if (slabs_.size() == 1) PackSlab(slabs_[0], 0, job.num_blocks, executor, &job);

  for (int64_t image = 0; image < g.batch; image += images_per_part_) {
    job.first_image = image;
    job.last_image = std::min(image + images_per_part_, g.batch);
    T* const grad_inputs = tensors.grad_inputs + image * image_size;
    for (int64_t block = 0; block < job.num_blocks; block += blocks_per_part_) {
      job.first_part_block = block;
      job.last_part_block = std::min(block + blocks_per_part_, job.num_blocks);
      job.first_channel = blocks_[block].first;
      job.sums_channels = ChannelsOf(block, job.last_part_block);
      job.grad_inputs = SumsOf(grad_inputs, workspace + grad_inputs_at_);
      SumPart(&job, executor, worker_space);
      if constexpr (kHasWiderSums<T>) RoundPart(job, executor, grad_inputs);
    }
  }
}

// Packs the filters of the slab that blocks [first_block, last_block) are multiplied by.
template <typename T>
void BackwardPlan<T>::PackSlab(const Slab& slab, int64_t first_block, int64_t last_block,
                               Executor& executor, InputsGradientJob<T>* job) const {
  job->first_block = first_block;
  job->last_block = last_block;
  job->first_tap = slab.first_tap;
  job->last_tap = slab.last_tap;
  job->packed_from = blocks_[first_block].packed_at;
  if (job->depthwise) return;  // its filters are read where they are
  ForEach(executor, last_block - first_block, BlockProducts(*job),
          [&](int64_t unit, int) { kernels_.pack_transposed_filters(*job, first_block + unit); });
}

template <typename T>
void BackwardPlan<T>::SumPart(InputsGradientJob<T>* part, Executor& executor,
                              ComputeType<T>* worker_space) const {
  using A = ComputeType<T>;
  InputsGradientJob<T>& job = *part;
  const Geometry& g = job.geometry;
  const int64_t images = job.last_image - job.first_image;
  const auto gradient =
      job.depthwise ? kernels_.depthwise_inputs_gradient : kernels_.inputs_gradient;
  job.split_size = images * g.height * g.width * job.sums_channels;
  const auto clear = [&](A* sums, int64_t size) {
    ForEachPiece(executor, size, [&](int64_t first, int64_t count) {
      std::memset(sums + first, 0, count * sizeof(A));
    });
  };
  clear(job.grad_inputs, job.split_size);
  clear(job.split_sums, (job.splits - 1) * job.split_size);
  for (int64_t pixel = 0; pixel < g.output_size(); pixel += pixels_per_step_) {
    job.first_pixel = pixel;
    job.last_pixel = std::min(pixel + pixels_per_step_, g.output_size());
    for (const Slab& slab : slabs_) {
      const int64_t first_block = std::max(slab.first_block, job.first_part_block);
      const int64_t last_block = std::min(slab.last_block, job.last_part_block);
      if (first_block >= last_block) continue;
      if (slabs_.size() > 1) PackSlab(slab, first_block, last_block, executor, &job);
      job.first_block = first_block;
      job.last_block = last_block;
      ForEach(executor, images * job.splits * (last_block - first_block),
              2 * BlockProducts(job) * (job.last_pixel - job.first_pixel) / job.splits,
              [&](int64_t unit, int worker) {
                gradient(job, unit, worker_space + worker * inputs_worker_size_);
              });
    }
    ForEach(executor, images * CeilDiv(job.last_pixel - job.first_pixel, kReducedPixels),
            3 * kReducedPixels * (job.last_part_block - job.first_part_block) * g.taps(),
            [&](int64_t unit, int) { kernels_.reduce_partials(job, unit); });
  }
  if (job.splits > 1) {
    ForEach(executor, CeilDiv(job.split_size, kReducedElements), job.splits * kReducedElements,
            [&](int64_t unit, int) { kernels_.add_splits(job, unit); });
  }
}

// Rounds the part's sums to where they belong in the gradient of its images.
template <typename T>
void BackwardPlan<T>::RoundPart(const InputsGradientJob<T>& job, Executor& executor,
                                T* grad_inputs) const {
  const int64_t channels = job.geometry.channels, width = job.sums_channels;
  if (width == channels) {
    ForEachPiece(executor, job.split_size, [&](int64_t first, int64_t count) {
      kernels_.round(job.grad_inputs + first, count, grad_inputs + first);
    });
    return;
  }
  const int64_t pixels = job.split_size / width;
  const int64_t piece = CeilDiv(kPieceElements, width);
  ForEach(executor, CeilDiv(pixels, piece), kPieceElements, [&](int64_t unit, int) {
    const int64_t last = std::min((unit + 1) * piece, pixels);
    for (int64_t pixel = unit * piece; pixel < last; ++pixel) {
      kernels_.round(job.grad_inputs + pixel * width, width,
                     grad_inputs + pixel * channels + job.first_channel);
    }
  });
}

// The multiplications for an output pixel and a block, about.
template <typename T>
int64_t BackwardPlan<T>::BlockProducts(const InputsGradientJob<T>& job) const {
  return (job.last_tap - job.first_tap) * (job.depthwise ? 1 : job.geometry.group_filters()) *
         blocks_[0].width;
}

template class BackwardPlan<float>;
template class BackwardPlan<double>;
template class BackwardPlan<Half>;
template class BackwardPlan<BFloat16>;

}  // namespace tf_deformable::deformable_conv2d::cpu
