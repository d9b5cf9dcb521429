#include "kernels/deformable_conv2d/cpu_forward_plan.h"

#include <algorithm>

#include "kernels/cpu/driver.h"
#include "kernels/deformable_conv2d/cpu_tiles.h"

namespace tf_deformable::deformable_conv2d::cpu {

template <typename T>
ForwardPlan<T>::ForwardPlan(const Geometry& geometry, int num_workers)
    : kernels_(TableKernels<T>()) {
  const Geometry g = KernelGeometry(geometry);
  job_.geometry = g;
  if (g.output_pixels() == 0) return;
  job_.depthwise = geometry.is_depthwise();
  if (job_.depthwise) {
    PlanDepthwise(num_workers);
    return;
  }
  job_.depth = g.taps() * g.group_channels();
  job_.panels = CeilDiv(job_.depth, kLargestPanel);
  job_.panel_row = PanelRow<ComputeType<T>>(std::min(job_.depth, kLargestPanel));
  if (PlanTogether(num_workers) || PlanFewPixels(num_workers)) return;
  PlanTiles(num_workers);
}

// Groups of few channels, if all filters fit into one slab.
template <typename T>
bool ForwardPlan<T>::PlanTogether(int num_workers) {
  using A = ComputeType<T>;
  const Geometry& g = job_.geometry;
  const Together together(kernels_, g);
  job_.groups_together = 1;
  if (together.groups == 1) return false;
  job_.packed_group_size = job_.depth * RoundUp(g.group_filters(), kernels_.lanes);
  const int64_t packed_groups =
      kPackedBytes / (job_.packed_group_size * static_cast<int64_t>(sizeof(A)));
  if (g.groups > packed_groups) return false;
  job_.groups_together = together.groups;
  job_.last_group = g.groups;
  job_.last_filter = g.group_filters();
  job_.group_row = together.group_row;
  job_.panel_row = together.panel_row;
  // The last group's columns may fill up a vector.
  job_.sums_row = RoundUp(together.groups * g.group_filters() + kernels_.lanes - 1, kernels_.lanes);
  job_.tile_pixels = std::min({together.tile_pixels, SharedPixels(kernels_.block_rows),
                               TilePixels(kernels_, g.output_pixels(), 1, job_.sums_row)});
  Layout<A> worker;
  job_.panel_at = worker.Add(job_.tile_pixels * job_.panel_row);
  job_.sums_at = worker.Add(job_.tile_pixels * job_.sums_row);
  AddTile(worker, kernels_.lanes);
  worker_size_ = worker.size();
  Layout<A> all;
  all.Add(g.groups * job_.packed_group_size);
  worker_at_ = all.Add(num_workers * worker_size_);
  workspace_bytes_ = all.size() * sizeof(A);
  return true;
}

// All pixels make one tile, if what they sample fits.
template <typename T>
bool ForwardPlan<T>::PlanFewPixels(int num_workers) {
  using A = ComputeType<T>;
  const Geometry& g = job_.geometry;
  const int64_t panel_filters_bytes = kLargestPanel * sizeof(A);
  job_.filters_per_block = std::clamp(
      RoundUp(CeilDiv(g.group_filters(), CeilDiv(kUnitsWanted, g.groups)), kernels_.panel_columns),
      kernels_.panel_columns, kPanelFiltersBytes / panel_filters_bytes);
  job_.filter_blocks = CeilDiv(g.group_filters(), job_.filters_per_block);
  job_.sums_row = job_.filters_per_block;
  job_.tile_pixels = TilePixels(kernels_, g.output_pixels(), 1, job_.sums_row);
  const int64_t pixel_bytes = g.groups * job_.panels * job_.panel_row * sizeof(A);
  job_.few_pixels =
      job_.tile_pixels == g.output_pixels() && g.output_pixels() <= kFewPixelsBytes / pixel_bytes;
  if (!job_.few_pixels) return false;

  Layout<A> worker;
  job_.sums_at = worker.Add(job_.tile_pixels * job_.sums_row);
  job_.panel_filters_at = worker.Add(kLargestPanel * job_.filters_per_block);
  AddTile(worker, PanelSamples(g, kernels_.lanes));
  worker_size_ = worker.size();
  Layout<A> all;
  all.Add(g.groups * job_.panels * job_.tile_pixels * job_.panel_row);
  worker_at_ = all.Add(num_workers * worker_size_);
  workspace_bytes_ = all.size() * sizeof(A);
  return true;
}

template <typename T>
void ForwardPlan<T>::PlanTiles(int num_workers) {
  using A = ComputeType<T>;
  const Geometry& g = job_.geometry;
  const int64_t depth = job_.depth;
  const int64_t column_bytes = depth * sizeof(A);
  const int64_t columns = RoundUp(g.group_filters(), kernels_.lanes);
  // If not even one panel of packed filters fits into a slab, a worker packs what a sampled panel
  // is multiplied by, each time a tile needs it.
  job_.packs_per_panel = column_bytes * std::min(columns, kernels_.panel_columns) > kPackedBytes;
  const int64_t packed_columns =
      job_.packs_per_panel ? kPanelFiltersBytes / (kLargestPanel * static_cast<int64_t>(sizeof(A)))
                           : kPackedBytes / column_bytes;
  const int64_t summed_columns =
      kSumsBytes / (kernels_.block_rows * static_cast<int64_t>(sizeof(A)));
  const int64_t most_columns = std::min(packed_columns, summed_columns);
  filters_per_slab_ = g.group_filters();
  if (columns > most_columns) {
    filters_per_slab_ = most_columns / kernels_.panel_columns * kernels_.panel_columns;
  }
  const int64_t slab_columns = RoundUp(filters_per_slab_, kernels_.lanes);
  job_.packed_group_size = job_.packs_per_panel ? 0 : depth * slab_columns;
  groups_per_slab_ =
      job_.packs_per_panel
          ? g.groups
          : std::clamp<int64_t>(kPackedBytes / (column_bytes * slab_columns), 1, g.groups);

  const int64_t group_samples = g.offset_groups * g.taps();
  const int64_t block_samples = RoundUp(kernels_.block_rows, kernels_.lanes) * group_samples;
  job_.all_samples = g.groups > 1 && block_samples * kSampleBytes<A> <= kMostSamplesBytes;
  const int64_t pixel_samples = job_.all_samples ? group_samples : 1;
  job_.tile_pixels = std::min(TilePixels(kernels_, g.output_pixels(), pixel_samples, slab_columns),
                              SharedPixels(kernels_.block_rows));
  job_.sums_row = slab_columns;
  const int64_t panel_filters = std::min(depth, kLargestPanel) * slab_columns;
  Layout<A> worker;
  job_.panel_at = worker.Add(job_.tile_pixels * job_.panel_row);
  job_.sums_at = worker.Add(job_.tile_pixels * job_.sums_row);
  job_.panel_filters_at = worker.Add(job_.packs_per_panel ? panel_filters : 0);
  AddTile(worker, job_.all_samples ? RoundUp(job_.tile_pixels, kernels_.lanes) * pixel_samples
                                   : PanelSamples(g, kernels_.lanes));
  worker_size_ = worker.size();

  Layout<A> all;
  all.Add(groups_per_slab_ * job_.packed_group_size);
  worker_at_ = all.Add(num_workers * worker_size_);
  workspace_bytes_ = all.size() * sizeof(A);
}

// Few enough pixels for a tile, in blocks of so many, that there are some tiles for the threads.
template <typename T>
int64_t ForwardPlan<T>::SharedPixels(int64_t block) const {
  return std::max(RoundUp(CeilDiv(job_.geometry.output_pixels(), kUnitsWanted), block),
                  kFewestTileBlocks * block);
}

template <typename T>
void ForwardPlan<T>::PlanDepthwise(int num_workers) {
  using A = ComputeType<T>;
  const Geometry& g = job_.geometry;
  const int64_t lanes = kernels_.lanes;
  job_.tile_pixels = std::min(kTileBlocks * lanes, SharedPixels(lanes));
  job_.taps_together = CeilDiv(g.taps(), CeilDiv(g.taps(), kTapsTogether));
  job_.sums_row = std::min(g.channels, kLargestPanel);
  Layout<A> worker;
  job_.sums_at = worker.Add(kHasWiderSums<T> ? lanes * job_.sums_row : 0);
  AddTile(worker, job_.taps_together * lanes);
  worker_size_ = worker.size();
  workspace_bytes_ = num_workers * worker_size_ * sizeof(A);
}

// A tile's pixels, and of its samples so many.
template <typename T>
void ForwardPlan<T>::AddTile(Layout<ComputeType<T>>& worker, int64_t samples) {
  using A = ComputeType<T>;
  job_.pixels_at = worker.AddBytes(RoundUp(job_.tile_pixels, kernels_.lanes) * kPixelBytes<A>);
  job_.samples_at = worker.AddBytes(samples * kSampleBytes<A>);
}

template <typename T>
void ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, Executor& executor,
                         void* workspace) const {
  using A = ComputeType<T>;
  if (job_.geometry.output_pixels() == 0) return;
  ForwardJob<T> job = job_;
  job.tensors = tensors;
  A* const shared = static_cast<A*>(workspace);
  if (job.depthwise) {
    const Geometry& g = job.geometry;
    ForEach(executor, CeilDiv(g.output_pixels(), job.tile_pixels),
            8 * job.tile_pixels * g.taps() * g.channels, [&](int64_t unit, int worker) {
              kernels_.depthwise_forward(job, unit, shared + worker * worker_size_);
            });
  } else if (job.groups_together > 1) {
    job.packed_filters = shared;
    RunTogether(job, executor, shared + worker_at_);
  } else if (job.few_pixels) {
    job.sampled = shared;
    RunFewPixels(job, executor, shared + worker_at_);
  } else {
    job.packed_filters = shared;
    RunTiles(job, executor, shared + worker_at_);
  }
}

template <typename T>
void ForwardPlan<T>::RunTogether(const ForwardJob<T>& job, Executor& executor,
                                 ComputeType<T>* workers) const {
  const Geometry& g = job.geometry;
  ForEach(executor, g.groups * job.panels, kLargestPanel * g.group_filters(),
          [&](int64_t unit, int) { kernels_.pack_filters(job, unit); });
  ForEach(executor, CeilDiv(g.output_pixels(), job.tile_pixels) * (g.groups / job.groups_together),
          2 * job.groups_together * job.depth * g.group_filters() * job.tile_pixels,
          [&](int64_t unit, int worker) {
            kernels_.forward_together(job, unit, workers + worker * worker_size_);
          });
}

template <typename T>
void ForwardPlan<T>::RunFewPixels(const ForwardJob<T>& job, Executor& executor,
                                  ComputeType<T>* workers) const {
  const int64_t groups = job.geometry.groups;
  // To sample is some times the work of a product's element.
  ForEach(executor, groups * job.panels, 8 * job.tile_pixels * std::min(job.depth, kLargestPanel),
          [&](int64_t unit, int worker) {
            kernels_.sample_few_pixels(job, unit, workers + worker * worker_size_);
          });
  ForEach(executor, groups * job.filter_blocks,
          2 * job.tile_pixels * job.depth * job.filters_per_block, [&](int64_t unit, int worker) {
            kernels_.multiply_few_pixels(job, unit, workers + worker * worker_size_);
          });
}

template <typename T>
void ForwardPlan<T>::RunTiles(ForwardJob<T>& job, Executor& executor,
                              ComputeType<T>* workers) const {
  const Geometry& g = job.geometry;
  const int64_t tiles = CeilDiv(g.output_pixels(), job.tile_pixels);
  for (int64_t group = 0; group < g.groups; group += groups_per_slab_) {
    job.first_group = group;
    job.last_group = std::min(group + groups_per_slab_, g.groups);
    const int64_t groups = job.last_group - job.first_group;
    for (int64_t filter = 0; filter < g.group_filters(); filter += filters_per_slab_) {
      job.first_filter = filter;
      job.last_filter = std::min(filter + filters_per_slab_, g.group_filters());
      const int64_t columns = job.last_filter - job.first_filter;
      if (!job.packs_per_panel) {
        ForEach(executor, groups * job.panels, kLargestPanel * columns,
                [&](int64_t unit, int) { kernels_.pack_filters(job, unit); });
      }
      const int64_t products = groups * job.depth * columns;
      ForEach(executor, tiles, 2 * products * job.tile_pixels, [&](int64_t unit, int worker) {
        kernels_.forward(job, unit, workers + worker * worker_size_);
      });
    }
  }
}

template class ForwardPlan<float>;
template class ForwardPlan<double>;
template class ForwardPlan<Half>;
template class ForwardPlan<BFloat16>;

}  // namespace tf_deformable::deformable_conv2d::cpu
