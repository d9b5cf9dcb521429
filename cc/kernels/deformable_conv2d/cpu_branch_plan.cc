#include "kernels/deformable_conv2d/cpu_branch_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/cpu/driver.h"
#include "kernels/deformable_conv2d/cpu_tiles.h"

namespace tf_deformable::deformable_conv2d::cpu {
namespace {

// Taps share the copy of a row if at most one result for so many is computed for nothing,
constexpr int64_t kSharedRowsWaste = 7;
// and if at most so many pixels are copied for a result.
constexpr int64_t kMostSharedStride = 2;
// A block of the filters' gradient has at most so many filters.
constexpr int64_t kMostBlockFilters = 256;

GridAxis ForwardAxis(int64_t output, int64_t input, int64_t kernel, int64_t stride,
                     int64_t dilation, int64_t pad) {
  return {output, 0, 1, stride, -pad, input, kernel, dilation, 0, 1};
}

Grid ForwardGrid(const Geometry& g) {
  Grid grid = {};
  grid.y =
      ForwardAxis(g.output_height, g.height, g.kernel_height, g.stride_y, g.dilation_y, g.pad_top);
  grid.x =
      ForwardAxis(g.output_width, g.width, g.kernel_width, g.stride_x, g.dilation_x, g.pad_left);
  grid.images = g.batch;
  grid.channels = g.channels;
  return grid;
}

// Pixel q of the inputs is read by tap k of output p where p * stride - pad + k * dilation = q. The
// pixels first + i * stride are read by the same taps, every apart-th one, and each of these from
// p = i + a constant. There is an axis for each `first` that any tap reads.
std::vector<GridAxis> GradientAxes(const GridAxis& forward) {
  const int64_t stride = forward.stride;
  const int64_t apart = stride / std::gcd(stride, forward.dilation);
  std::vector<GridAxis> axes;
  for (int64_t tap = 0; tap < std::min(apart, forward.taps); ++tap) {
    const int64_t shift = forward.origin + tap * forward.dilation;
    const int64_t first = (shift % stride + stride) % stride;
    if (first >= forward.source_size) continue;
    // From the last of these taps, which comes from the first p, to `tap`.
    const int64_t taps = CeilDiv(forward.taps - tap, apart);
    const int64_t dilation = apart * forward.dilation / stride;
    GridAxis axis = {};
    axis.size = CeilDiv(forward.source_size - first, stride);
    axis.first = first;
    axis.results_apart = stride;
    axis.stride = 1;
    axis.origin = (first - shift) / stride - (taps - 1) * dilation;
    axis.source_size = forward.size;
    axis.taps = taps;
    axis.dilation = dilation;
    axis.first_tap = tap + (taps - 1) * apart;
    axis.taps_apart = -apart;
    axes.push_back(axis);
  }
  return axes;
}

// Fills in how the grid is cut into tiles of at most so many results.
void CutGrid(int64_t most_results, Grid* grid) {
  const GridAxis& x = grid->x;
  grid->column_tiles = CeilDiv(x.size, std::min(x.size, most_results));
  grid->width = CeilDiv(x.size, grid->column_tiles);
  // In a copy that taps share, a row is longer by what its last tap reads further on.
  const int64_t pitch =
      CeilDiv((grid->width - 1) * x.stride + (x.taps - 1) * x.dilation + 1, x.stride);
  grid->shares_rows = x.taps > 1 && x.stride <= kMostSharedStride &&
                      pitch - grid->width <= grid->width / kSharedRowsWaste;
  grid->row_pitch = grid->shares_rows ? pitch : grid->width;
  const int64_t all_rows = grid->images * grid->y.size;
  grid->rows = std::clamp<int64_t>((most_results - grid->width) / grid->row_pitch + 1, 1, all_rows);
  grid->row_tiles = CeilDiv(all_rows, grid->rows);
  grid->chunk_channels = std::min(
      grid->channels, grid->shares_rows ? kLargestPanel / 2 / grid->pixels_apart() : kLargestPanel);
}

// The results of a tile, and those between its rows.
int64_t TileResults(const Grid& grid) { return (grid.rows - 1) * grid.row_pitch + grid.width; }

// The elements of a copy of which `results` are read, and of the vector behind the last channel.
int64_t CopySize(const Grid& grid, int64_t results, int64_t lanes) {
  const int64_t read =
      (results - 1) * grid.pixels_apart() + 1 + (grid.copied_taps() - 1) * grid.x.dilation;
  const int64_t written = grid.rows * grid.row_pitch * grid.pixels_apart();
  return std::max(read, written) * grid.chunk_channels + lanes;
}

// Cuts a product: fills in what its job has for that.
struct Cut {
  int64_t columns_per_slab, worker_size, packed_size;
};
template <typename T, typename Tensors>
Cut CutProduct(const Kernels<T>& kernels, int64_t columns, bool takes_dots,
               GridJob<T, Tensors>* job) {
  using A = ComputeType<T>;
  Grid& grid = job->grid;
  job->depth = grid.taps() * grid.channels;
  const int64_t column_bytes = job->depth * sizeof(A);
  const int64_t all = RoundUp(columns, kernels.lanes);
  Cut cut = {};
  job->packs_per_product = column_bytes * std::min(all, kernels.panel_columns) > kPackedBytes;
  const int64_t most =
      std::min(job->packs_per_product
                   ? kPanelFiltersBytes / (kLargestPanel * static_cast<int64_t>(sizeof(A)))
                   : kPackedBytes / column_bytes,
               kSumsBytes / (kernels.block_rows * static_cast<int64_t>(sizeof(A))));
  cut.columns_per_slab =
      all <= most ? columns : most / kernels.panel_columns * kernels.panel_columns;
  const int64_t slab = RoundUp(cut.columns_per_slab, kernels.lanes);
  CutGrid(TilePixels(kernels, grid.images * grid.y.size * grid.x.size, 1, slab), &grid);
  // Vectors along the depth must be whole; and most of a vector of columns is as good as all of it.
  const int64_t over = columns % kernels.lanes;
  if (takes_dots && cut.columns_per_slab == columns && !job->packs_per_product &&
      grid.channels % kernels.lanes == 0 && over <= kernels.lanes * 3 / 4) {
    job->dot_columns = over;
  }
  job->tile_results = RoundUp(TileResults(grid), kernels.block_rows);
  job->sums_row = slab + kernels.lanes;  // the mask is worked out in whole vectors
  Layout<A> worker;
  job->copy_at = worker.Add(CopySize(grid, job->tile_results, kernels.lanes));
  job->sums_at = worker.Add(job->tile_results * job->sums_row);
  job->product_filters_at =
      worker.Add(job->packs_per_product ? grid.product_taps() * grid.chunk_channels * slab : 0);
  cut.worker_size = worker.size();
  cut.packed_size = job->packs_per_product ? 0 : job->depth * slab;
  return cut;
}

// Runs a product, slab by slab.
template <typename T, typename Tensors, typename Pack, typename Tile>
void RunProduct(const Kernels<T>& kernels, GridJob<T, Tensors> job, int64_t columns,
                int64_t columns_per_slab, Executor& executor, const Pack& pack, const Tile& tile) {
  const int64_t products = job.grid.products();
  for (int64_t first = 0; first < columns; first += columns_per_slab) {
    job.first_column = first;
    job.last_column = std::min(first + columns_per_slab, columns);
    const int64_t width = job.last_column - first;
    job.packed_columns = RoundUp(width - job.dot_columns, kernels.lanes);
    if (!job.packs_per_product) {
      ForEach(executor, products, job.depth * width / products,
              [&](int64_t product, int) { pack(job, product); });
    }
    ForEach(executor, job.grid.tiles(), 2 * job.depth * width * job.tile_results,
            [&](int64_t unit, int worker) { tile(job, unit, worker); });
  }
}

}  // namespace

// --- Forward -------------------------------------------------------------------------------------

template <typename T>
BranchForwardPlan<T>::BranchForwardPlan(const Geometry& g, int num_workers)
    : kernels_(TableKernels<T>()) {
  using A = ComputeType<T>;
  if (g.output_pixels() == 0) return;
  job_.geometry = g;
  job_.grid = ForwardGrid(g);
  const Cut cut = CutProduct(kernels_, g.filters, true, &job_);
  columns_per_slab_ = cut.columns_per_slab;
  worker_size_ = cut.worker_size;
  Layout<A> all;
  all.Add(cut.packed_size);
  worker_at_ = all.Add(num_workers * worker_size_);
  workspace_bytes_ = all.size() * sizeof(A);
}

template <typename T>
void BranchForwardPlan<T>::Run(const BranchTensors<T>& tensors, Executor& executor,
                               void* workspace) const {
  using A = ComputeType<T>;
  if (workspace_bytes_ == 0) return;
  BranchJob<T> job = job_;
  job.tensors = tensors;
  job.packed_filters = static_cast<A*>(workspace);
  A* const worker_space = job.packed_filters + worker_at_;
  RunProduct(
      kernels_, job, job.geometry.filters, columns_per_slab_, executor,
      [&](const BranchJob<T>& slab, int64_t product) {
        kernels_.pack_branch_filters(slab, product);
      },
      [&](const BranchJob<T>& slab, int64_t unit, int worker) {
        kernels_.branch(slab, unit, worker_space + worker * worker_size_);
      });
}

// --- Backward ------------------------------------------------------------------------------------

template <typename T>
BranchBackwardPlan<T>::BranchBackwardPlan(const Geometry& geometry, int num_workers)
    : kernels_(TableKernels<T>()) {
  const Geometry g = KernelGeometry(geometry);
  workspace_bytes_ = std::max(PlanFilters(g, num_workers), PlanInputs(g, num_workers)) *
                     static_cast<int64_t>(sizeof(ComputeType<T>));
}

template <typename T>
int64_t BranchBackwardPlan<T>::PlanFilters(const Geometry& g, int num_workers) {
  using A = ComputeType<T>;
  BranchFiltersJob<T>& job = filters_job_;
  job.geometry = g;
  if (g.output_pixels() == 0) return 0;
  job.grid = ForwardGrid(g);
  const Grid& grid = job.grid;
  // Filters and products are cut into blocks whose sums stay in the cache. To keep the threads
  // busy, the tiles are cut into as many splits as their sums leave room for.
  job.filters_per_block = std::min(g.filters, kMostBlockFilters);
  job.filter_blocks = CeilDiv(g.filters, job.filters_per_block);
  CutGrid(TilePixels(kernels_, g.output_pixels(), 1, job.filters_per_block), &job.grid);
  job.product_columns = RoundUp(grid.product_taps() * grid.chunk_channels, kernels_.lanes);
  const int64_t product_bytes =
      job.filters_per_block * job.product_columns * static_cast<int64_t>(sizeof(A));
  job.product_blocks = CeilDiv(grid.products(), std::max<int64_t>(kSumsBytes / product_bytes, 1));
  job.products_per_block = CeilDiv(grid.products(), job.product_blocks);
  job.product_blocks = CeilDiv(grid.products(), job.products_per_block);
  job.sums_row = job.products_per_block * job.product_columns;
  job.sums_size = RoundUp(job.filters_per_block * (job.sums_row + 1), kernels_.lanes);
  const int64_t blocks = job.filter_blocks * job.product_blocks;
  const int64_t room = std::max<int64_t>(
      kPartialsBytes / (blocks * job.sums_size * static_cast<int64_t>(sizeof(A))), 1);
  job.splits = std::min({CeilDiv(2 * kUnitsWanted, blocks), room, grid.tiles()});
  job.tiles_per_split = CeilDiv(grid.tiles(), job.splits);
  job.splits = CeilDiv(grid.tiles(), job.tiles_per_split);
  const int64_t results = TileResults(grid);
  job.upstream_row = PanelRow<A>(job.filters_per_block);
  Layout<A> worker;
  job.copy_at = worker.Add(CopySize(grid, results, kernels_.lanes));
  job.upstream_at = worker.Add(results * job.upstream_row);
  job.sums_at = worker.Add(job.splits > 1 ? 0 : job.sums_size);
  filters_worker_size_ = worker.size();
  Layout<A> all;
  all.Add(job.splits > 1 ? blocks * job.splits * job.sums_size : 0);
  filters_worker_at_ = all.Add(num_workers * filters_worker_size_);
  return all.size();
}

template <typename T>
int64_t BranchBackwardPlan<T>::PlanInputs(const Geometry& g, int num_workers) {
  using A = ComputeType<T>;
  int64_t size = 0, covered = 0;
  if (g.output_pixels() > 0) {
    const Grid forward = ForwardGrid(g);
    const std::vector<GridAxis> columns = GradientAxes(forward.x);
    for (const GridAxis& y : GradientAxes(forward.y)) {
      for (const GridAxis& x : columns) {
        InputsPass pass = {};
        pass.job.geometry = g;
        pass.job.grid.y = y;
        pass.job.grid.x = x;
        pass.job.grid.images = g.batch;
        pass.job.grid.channels = g.filters;
        const Cut cut = CutProduct(kernels_, g.channels, false, &pass.job);
        pass.columns_per_slab = cut.columns_per_slab;
        pass.worker_size = cut.worker_size;
        Layout<A> all;
        all.Add(cut.packed_size);
        pass.worker_at = all.Add(num_workers * pass.worker_size);
        size = std::max(size, all.size());
        covered += y.size * x.size;
        inputs_passes_.push_back(pass);
      }
    }
  }
  clears_inputs_ = covered < g.height * g.width;
  return size;
}

template <typename T>
void BranchBackwardPlan<T>::Run(const BranchGradientTensors<T>& tensors, Executor& executor,
                                void* workspace) const {
  RunFilters(tensors, executor, static_cast<ComputeType<T>*>(workspace));
  RunInputs(tensors, executor, static_cast<ComputeType<T>*>(workspace));
}

template <typename T>
void BranchBackwardPlan<T>::RunFilters(const BranchGradientTensors<T>& tensors, Executor& executor,
                                       ComputeType<T>* workspace) const {
  using A = ComputeType<T>;
  const Geometry& g = filters_job_.geometry;
  if (g.output_pixels() == 0) {
    std::memset(tensors.grad_filters, 0, g.taps() * g.channels * g.filters * sizeof(A));
    std::memset(tensors.grad_bias, 0, g.filters * sizeof(A));
    return;
  }
  BranchFiltersJob<T> job = filters_job_;
  job.tensors = tensors;
  job.sums = workspace;
  A* const worker_space = workspace + filters_worker_at_;
  const int64_t blocks = job.filter_blocks * job.product_blocks;
  ForEach(executor, blocks * job.splits,
          2 * job.tiles_per_split * TileResults(job.grid) * job.sums_size,
          [&](int64_t unit, int worker) {
            kernels_.branch_filters_gradient(job, unit,
                                             worker_space + worker * filters_worker_size_);
          });
  if (job.splits == 1) return;
  ForEach(executor, blocks, job.splits * job.sums_size,
          [&](int64_t block, int) { kernels_.reduce_branch_filters(job, block); });
}

template <typename T>
void BranchBackwardPlan<T>::RunInputs(const BranchGradientTensors<T>& tensors, Executor& executor,
                                      ComputeType<T>* workspace) const {
  using A = ComputeType<T>;
  const Geometry& g = filters_job_.geometry;
  if (clears_inputs_) {
    ForEachPiece(
        executor, g.batch * g.height * g.width * g.channels, [&](int64_t first, int64_t count) {
          std::memset(static_cast<void*>(tensors.grad_inputs + first), 0, count * sizeof(T));
        });
  }
  for (const InputsPass& pass : inputs_passes_) {
    BranchInputsJob<T> job = pass.job;
    job.tensors = tensors;
    job.packed_filters = workspace;
    A* const worker_space = workspace + pass.worker_at;
    RunProduct(
        kernels_, job, g.channels, pass.columns_per_slab, executor,
        [&](const BranchInputsJob<T>& slab, int64_t product) {
          kernels_.pack_transposed_branch_filters(slab, product);
        },
        [&](const BranchInputsJob<T>& slab, int64_t unit, int worker) {
          kernels_.branch_inputs_gradient(slab, unit, worker_space + worker * pass.worker_size);
        });
  }
}

template class BranchForwardPlan<float>;
template class BranchForwardPlan<double>;
template class BranchForwardPlan<Half>;
template class BranchForwardPlan<BFloat16>;
template class BranchBackwardPlan<float>;
template class BranchBackwardPlan<double>;
template class BranchBackwardPlan<Half>;
template class BranchBackwardPlan<BFloat16>;

}  // namespace tf_deformable::deformable_conv2d::cpu
