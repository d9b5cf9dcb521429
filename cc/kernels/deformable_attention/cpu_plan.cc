#include "kernels/deformable_attention/cpu_plan.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/driver.h"

namespace tf_deformable::deformable_attention::cpu {
namespace {

// A unit of the forward pass has about so many multiply-adds.
constexpr int64_t kUnitProducts = 1 << 18;
// Rows whose samples are worked out together have at most so many, or one row's.
constexpr int64_t kSamplesTogether = 128;
// So many units of the backward pass keep some threads busy. Each works out the samples that it
// needs, so that a channel block has at least kLeastBlockChannels.
constexpr int64_t kUnitsWanted = 8;
constexpr int64_t kLeastBlockChannels = 32;
// Gradients that wait to be added up have at most so many bytes.
constexpr int64_t kPartialsBytes = 4 << 20;

template <typename T>
const Kernels<T>& TableKernels() {
  return SelectedKernels<T>(TF_DEFORMABLE_KERNEL_TABLES(kKernels));
}

// Samples of a row, if there are rows: tensors without elements may have any number of them.
int64_t Samples(const Geometry& g) { return g.rows() > 0 ? g.samples : 0; }

// The geometry that gradients are planned by: there are no images where neither the value nor the
// output has elements. Their other sizes may be anything then, and are not to be worked through.
Geometry GradientGeometry(const Geometry& geometry) {
  Geometry g = geometry;
  if (g.rows() == 0 && (g.batch == 0 || g.pixels == 0 || g.heads == 0)) {
    g.batch = g.pixels = g.queries = 0;
  }
  return g;
}

// Adds the arrays of SampleMaps for so many rows to a workspace; FillMaps writes and returns them.
template <typename A>
int64_t AddMaps(int64_t samples, int64_t rows, int64_t lanes, Layout<A>* layout) {
  using Size = typename SampleMaps<A>::Size;
  const int64_t padded = RoundUp(rows * samples, lanes);
  const int64_t at = layout->template Add<int64_t>(padded);
  layout->template Add<Size>(padded);
  layout->template Add<Size>(padded);
  return at;
}
template <typename A>
SampleMaps<A> FillMaps(const std::vector<Level>& levels, int64_t samples, int64_t rows,
                       int64_t lanes, A* workspace) {
  using Size = typename SampleMaps<A>::Size;
  const int64_t padded = RoundUp(rows * samples, lanes);
  Layout<A> layout;
  auto* const first_pixels =
      reinterpret_cast<int64_t*>(workspace + layout.template Add<int64_t>(padded));
  auto* const heights = reinterpret_cast<Size*>(workspace + layout.template Add<Size>(padded));
  auto* const widths = reinterpret_cast<Size*>(workspace + layout.template Add<Size>(padded));
  for (int64_t i = 0; i < padded;) {
    for (const Level& level : levels) {
      for (const int64_t end = std::min(i + level.points, padded); i < end; ++i) {
        first_pixels[i] = level.first_pixel;
        heights[i] = static_cast<Size>(level.height);
        widths[i] = static_cast<Size>(level.width);
      }
    }
  }
  return {heights, widths, first_pixels};
}

template <typename A>
int64_t SamplesBytes(int64_t samples, int64_t lanes) {
  return RoundUp(std::min(samples, kMostSamples), lanes) * kSampleBytes<A>;
}

}  // namespace

template <typename T>
ForwardPlan<T>::ForwardPlan(const Geometry& g, int num_workers)
    : kernels_(TableKernels<T>()), levels_(g.maps) {
  using A = ComputeType<T>;
  ForwardJob<T>& job = job_;
  job.image_rows = g.queries * g.heads;
  job.rows = g.rows();
  job.pixels = g.pixels;
  job.heads = g.heads;
  job.depth = g.depth;
  job.samples = Samples(g);
  job.normalized = g.coordinates == Coordinates::kNormalized;
  const int64_t row_products = std::max<int64_t>(4 * job.samples * g.depth, 1);
  job.rows_per_unit = std::max<int64_t>(kUnitProducts / row_products, 1);
  // Without samples too: the sums are 0 then, and have to be written.
  job.at_once = job.samples == 0 || (job.samples <= kMostSamples && g.depth <= kMostBlockChannels);
  job.rows_together = std::max<int64_t>(kSamplesTogether / std::max<int64_t>(job.samples, 1), 1);
  if (!job.at_once) job.rows_together = 1;

  Layout<A> worker;
  job.samples_at =
      worker.AddBytes(SamplesBytes<A>(job.rows_together * job.samples, kernels_.lanes));
  job.heads_at = worker.template Add<int64_t>(
      RoundUp(std::min(job.rows_together * job.samples, kMostSamples), kernels_.lanes));
  job.sums_at = worker.Add(std::min(g.depth, kMostBlockChannels));
  worker_size_ = worker.size();
  Layout<A> all;
  maps_at_ = AddMaps(job.samples, job.rows_together, kernels_.lanes, &all);
  worker_at_ = all.Add(num_workers * worker_size_);
  workspace_bytes_ = all.size() * sizeof(A);
}

template <typename T>
void ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, Executor& executor,
                         void* workspace) const {
  using A = ComputeType<T>;
  A* const space = static_cast<A*>(workspace);
  ForwardJob<T> job = job_;
  job.tensors = tensors;
  job.maps = FillMaps(levels_, job.samples, job.rows_together, kernels_.lanes, space + maps_at_);
  ForEach(executor, CeilDiv(job.rows, job.rows_per_unit), 2 * kUnitProducts,
          [&](int64_t unit, int worker) {
            kernels_.forward(job, unit, space + worker_at_ + worker * worker_size_);
          });
}

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& geometry, int num_workers)
    : kernels_(TableKernels<T>()), levels_(geometry.maps) {
  using A = ComputeType<T>;
  const Geometry g = GradientGeometry(geometry);
  images_ = g.batch;
  BackwardJob<T>& job = job_;
  job.pixels = g.pixels;
  job.queries = g.queries;
  job.heads = g.heads;
  job.depth = g.depth;
  job.samples = Samples(g);
  job.normalized = g.coordinates == Coordinates::kNormalized;

  const int64_t owners = std::max<int64_t>(g.batch * g.heads, 1);
  const int64_t wanted = CeilDiv(g.depth, CeilDiv(kUnitsWanted, owners));
  job.channels_per_block =
      std::clamp<int64_t>(RoundUp(wanted, kernels_.lanes), kLeastBlockChannels, kMostBlockChannels);
  job.blocks = std::max<int64_t>(CeilDiv(g.depth, job.channels_per_block), 1);
  // 16-bit gradients are summed in float, of some images at a time, and rounded once.
  const int64_t images = std::max<int64_t>(g.batch, 1);
  const int64_t image_units = std::max<int64_t>(g.heads * job.blocks, 1);
  images_per_step_ =
      kHasWiderSums<T> ? std::min(images, CeilDiv(kUnitsWanted, image_units)) : images;
  const int64_t query_partials =
      job.blocks > 1 ? images_per_step_ * g.heads * job.blocks * job.samples * 3 : 0;
  queries_per_step_ = std::max<int64_t>(g.queries, 1);
  if (query_partials > 0) {
    queries_per_step_ = std::clamp<int64_t>(
        kPartialsBytes / (query_partials * static_cast<int64_t>(sizeof(A))), 1, queries_per_step_);
  }

  const int64_t block_channels = std::min(job.channels_per_block, g.depth);
  Layout<A> worker;
  job.samples_at = worker.AddBytes(SamplesBytes<A>(job.samples, kernels_.lanes));
  job.gradients_at = worker.Add(std::min(job.samples, kMostSamples) * 3);
  job.upstream_at = worker.Add(kHasWiderSums<T> ? block_channels : 0);
  job.discard_at = worker.Add(block_channels);
  worker_size_ = worker.size();
  Layout<A> all;
  maps_at_ = AddMaps(job.samples, 1, kernels_.lanes, &all);
  partials_at_ = all.Add(queries_per_step_ * query_partials);
  grad_value_at_ =
      all.Add(kHasWiderSums<T> && g.batch > 0 ? images_per_step_ * g.pixels * g.channels() : 0);
  worker_at_ = all.Add(num_workers * worker_size_);
  workspace_bytes_ = all.size() * sizeof(A);
}

template <typename T>
void BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, Executor& executor,
                          void* workspace) const {
  using A = ComputeType<T>;
  A* const space = static_cast<A*>(workspace);
  BackwardJob<T> job = job_;
  job.tensors = tensors;
  job.maps = FillMaps(levels_, job.samples, 1, kernels_.lanes, space + maps_at_);
  job.partials = job.blocks > 1 ? space + partials_at_ : nullptr;
  const int64_t image_size = job.pixels * job.heads * job.depth;
  const int64_t row_operations = job.samples * (64 + 16 * job.channels_per_block) + 1;
  for (int64_t image = 0; image < images_; image += images_per_step_) {
    job.first_image = image;
    job.last_image = std::min(image + images_per_step_, images_);
    const int64_t images = job.last_image - job.first_image;
    T* const grad_value = tensors.grad_value + image * image_size;
    job.grad_value = SumsOf(grad_value, space + grad_value_at_);
    ForEachPiece(executor, images * image_size, [&](int64_t first, int64_t count) {
      std::memset(job.grad_value + first, 0, count * sizeof(A));
    });
    for (int64_t query = 0; query < job.queries; query += queries_per_step_) {
      job.first_query = query;
      job.last_query = std::min(query + queries_per_step_, job.queries);
      const int64_t queries = job.last_query - job.first_query;
      ForEach(executor, images * job.heads * job.blocks, queries * row_operations,
              [&](int64_t unit, int worker) {
                kernels_.backward(job, unit, space + worker_at_ + worker * worker_size_);
              });
      if (job.partials == nullptr) continue;
      ForEach(executor, images * queries, job.heads * job.samples * 3 * job.blocks,
              [&](int64_t unit, int) { kernels_.reduce_partials(job, unit); });
    }
    if constexpr (kHasWiderSums<T>) {
      ForEachPiece(executor, images * image_size, [&](int64_t first, int64_t count) {
        kernels_.round(job.grad_value + first, count, grad_value + first);
      });
    }
  }
}

template class ForwardPlan<float>;
template class ForwardPlan<double>;
template class ForwardPlan<Half>;
template class ForwardPlan<BFloat16>;
template class BackwardPlan<float>;
template class BackwardPlan<double>;
template class BackwardPlan<Half>;
template class BackwardPlan<BFloat16>;

}  // namespace tf_deformable::deformable_attention::cpu
