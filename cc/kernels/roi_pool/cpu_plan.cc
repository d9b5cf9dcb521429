#include "kernels/roi_pool/cpu_plan.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/driver.h"

namespace tf_deformable::roi_pool::cpu {
namespace {

// Gradients that wait to be added up have at most so many bytes.
constexpr int64_t kPartialsBytes = 4 << 20;
// So many units keep some threads busy. Each works out the bins that it needs, so more cost more.
constexpr int64_t kUnitsWanted = 4;

template <typename T>
const Kernels<T>& TableKernels() {
  return SelectedKernels<T>(TF_DEFORMABLE_KERNEL_TABLES(kKernels));
}

// The geometry that plans and kernels are given: to them, a map without pixels has no side either,
// and is the only one of its image. The tensor is empty then: its other sizes may be anything.
Geometry KernelGeometry(const Geometry& geometry) {
  Geometry g = geometry;
  if (g.batch == 0 || g.height == 0 || g.width == 0) {
    g.height = g.width = 0;
    g.group_size = 1;
    g.channels = g.depth;
  }
  return g;
}

// Estimated arithmetic of one box: each bin reads some pixels of every channel and class.
int64_t BoxOperations(const Geometry& g) { return g.bins() * (g.classes * 200 + g.depth * 16); }

}  // namespace

template <typename T>
ForwardPlan<T>::ForwardPlan(const Geometry& geometry, int num_workers)
    : kernels_(TableKernels<T>()) {
  job_.geometry = KernelGeometry(geometry);
  job_.axis_capacity = AxisCapacity(job_.geometry);
  workspace_bytes_ = num_workers * 2 * job_.axis_capacity * sizeof(AxisLine<ComputeType<T>>);
}

template <typename T>
void ForwardPlan<T>::Run(const ForwardTensors<T>& tensors, Executor& executor,
                         void* workspace) const {
  ForwardJob<T> job = job_;
  job.tensors = tensors;
  auto* const lines = static_cast<AxisLine<ComputeType<T>>*>(workspace);
  ForEach(executor, job.geometry.boxes, BoxOperations(job.geometry), [&](int64_t unit, int worker) {
    kernels_.forward(job, unit, lines + worker * 2 * job.axis_capacity);
  });
}

template <typename T>
BackwardPlan<T>::BackwardPlan(const Geometry& geometry, int num_workers)
    : kernels_(TableKernels<T>()) {
  using A = ComputeType<T>;
  const Geometry g = KernelGeometry(geometry);
  BackwardJob<T>& job = job_;
  job.geometry = g;
  job.axis_capacity = AxisCapacity(g);
  const int64_t maps = g.group_size * g.group_size;
  const int64_t wanted =
      RoundUp(CeilDiv(g.depth, std::max<int64_t>(CeilDiv(kUnitsWanted, maps), 1)), kernels_.lanes);
  job.channels_per_block = std::min(g.class_depth(), wanted);
  job.slices = CeilDiv(g.class_depth(), job.channels_per_block);
  job.classes_per_block = std::clamp<int64_t>(wanted / g.class_depth(), 1, g.classes);
  job.blocks = CeilDiv(g.classes, job.classes_per_block) * job.slices;

  const int64_t box_partials = job.slices * g.bins() * g.classes * 3;
  boxes_per_step_ = std::clamp<int64_t>(kPartialsBytes / (box_partials * sizeof(A)), 1,
                                        std::max<int64_t>(g.boxes, 1));
  Layout<char> all;
  all.Add<AxisLine<A>>(num_workers * 2 * job.axis_capacity);
  // Without boxes their partials would be as many as anyone asks for.
  partials_at_ = all.Add<A>(std::min(boxes_per_step_, g.boxes) * box_partials);
  // Where gradients are rounded, their sums are held for some images at a time.
  const int64_t image_size = g.height * g.width * g.channels;
  const int64_t images = std::max<int64_t>(g.batch, 1);  // boxes that are padding need no image
  const int64_t image_bytes = std::max<int64_t>(image_size * static_cast<int64_t>(sizeof(A)), 1);
  images_per_part_ = kHasWiderSums<T> && image_size > 0
                         ? std::clamp<int64_t>(kRoundedBytes / image_bytes, 1, images)
                         : images;
  grad_inputs_at_ =
      all.Add<A>(kHasWiderSums<T> ? std::min(images_per_part_, g.batch) * image_size : 0);
  workspace_bytes_ = all.size();
}

template <typename T>
void BackwardPlan<T>::Run(const BackwardTensors<T>& tensors, Executor& executor,
                          void* workspace) const {
  using A = ComputeType<T>;
  const Geometry& g = job_.geometry;
  char* const space = static_cast<char*>(workspace);
  auto* const lines = reinterpret_cast<AxisLine<A>*>(space);
  BackwardJob<T> job = job_;
  job.tensors = tensors;
  const bool reduces = tensors.grad_offsets || tensors.grad_mask;
  job.partials = reduces ? reinterpret_cast<A*>(space + partials_at_) : nullptr;
  const int64_t image_size = g.height * g.width * g.channels;
  const int64_t maps = g.group_size * g.group_size;
  int64_t image = 0;
  do {  // once even without images
    job.first_image = image;
    job.last_image = image + images_per_part_;
    T* const grad_inputs = tensors.grad_inputs + image * image_size;
    job.grad_inputs = SumsOf(grad_inputs, space + grad_inputs_at_);
    const int64_t size = std::min(images_per_part_, g.batch - image) * image_size;
    ForEachPiece(executor, size, [&](int64_t first, int64_t count) {
      std::memset(job.grad_inputs + first, 0, count * sizeof(A));
    });
    for (int64_t box = 0; box < g.boxes; box += boxes_per_step_) {
      job.first_box = box;
      job.last_box = std::min(box + boxes_per_step_, g.boxes);
      const int64_t boxes = job.last_box - job.first_box;
      ForEach(executor, maps * job.blocks, 2 * boxes * BoxOperations(g) / (maps * job.blocks) + 1,
              [&](int64_t unit, int worker) {
                kernels_.backward(job, unit, lines + worker * 2 * job.axis_capacity);
              });
      if (reduces) {
        ForEach(executor, boxes, g.bins() * g.classes * job.slices * 3,
                [&](int64_t unit, int) { kernels_.reduce_partials(job, job.first_box + unit); });
      }
    }
    if constexpr (kHasWiderSums<T>) {
      ForEachPiece(executor, size, [&](int64_t first, int64_t count) {
        kernels_.round(job.grad_inputs + first, count, grad_inputs + first);
      });
    }
    image += images_per_part_;
  } while (image < g.batch);
}

template class ForwardPlan<float>;
template class ForwardPlan<double>;
template class ForwardPlan<Half>;
template class ForwardPlan<BFloat16>;
template class BackwardPlan<float>;
template class BackwardPlan<double>;
template class BackwardPlan<Half>;
template class BackwardPlan<BFloat16>;

}  // namespace tf_deformable::roi_pool::cpu
