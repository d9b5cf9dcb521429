// How the gradients of inputs, offsets and mask are planned and launched on a CUDA device.
//
// Three passes over the output pixels of some images: the samples are listed by cell
// (cuda_cell_lists.h), their gradients ds go into the workspace (cuda_columns_gradient.h), and each
// pixel of the inputs gathers what is added to it (cuda_gather.h). Nothing is added by two threads,
// so that results are the same in every run.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/reduce.h"
#include "kernels/deformable_conv2d/cuda_cell_lists.h"
#include "kernels/deformable_conv2d/cuda_columns_gradient.h"
#include "kernels/deformable_conv2d/cuda_gather.h"
#include "kernels/deformable_conv2d/cuda_launch.h"
#include "kernels/deformable_conv2d/cuda_plan.h"

namespace tf_deformable::deformable_conv2d::cuda {

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
  constexpr int64_t kStepPixels = 128;  // steps are whole multiples of so many
  const int64_t columns_limit = options.columns_bytes > 0 ? options.columns_bytes : kColumnsBytes;
  const int64_t step = std::max(
      std::min(columns_limit / pixel_bytes, kListsBytes / list_bytes) / kStepPixels * kStepPixels,
      kStepPixels);
  steps.pixels_per_step = step < g.output_size() ? step : 0;
  steps.images_per_list = steps.images_per_step = 1;
  if (steps.pixels_per_step == 0) {
    const int64_t most = std::clamp<int64_t>(kListsBytes / image_list_bytes, 1, g.batch);
    steps.images_per_step =
        std::clamp<int64_t>(columns_limit / (g.output_size() * pixel_bytes), 1, most);
    steps.images_per_list = most / steps.images_per_step * steps.images_per_step;
  }
  int64_t step_pixels = steps.pixels_per_step;
  steps.pixels_per_list = steps.pixels_per_step;
  if (steps.pixels_per_step == 0) {
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
  const bool has_sums = kHasWiderSums<T> && steps.pixels_per_step > 0;
  const Memory memory(nullptr, nullptr, steps.images_per_list * g.offset_groups, cells,
                      steps.pixels_per_list * pixel_samples);
  const auto take = [&](int64_t bytes) {
    const int64_t at = steps.workspace_bytes;
    steps.workspace_bytes += RoundUp(bytes, 256);
    return at;
  };
  steps.workspace_bytes = 0;
  take(prepared_bytes);  // at the beginning
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
auto GatherKernelOf(int32_t team) {
  if (team == 8) return GatherKernel<T, kVectors, kDepthwise, 8>;
  if (team == 16) return GatherKernel<T, kVectors, kDepthwise, 16>;
  return GatherKernel<T, kVectors, kDepthwise, 32>;
}

template <typename T>
Status LaunchGather(const Convolution& c, const BackwardTensors<T>& tensors, bool depthwise,
                    bool vectorised, int32_t team, int64_t images, GatherJob<T> job, void* stream) {
  job.strips = CeilDiv(c.width, kStripCells);
  job.row_blocks = CeilDiv(c.height + 1, kThreads / team);
  const int64_t blocks =
      images * c.offset_groups * job.ranges * static_cast<int64_t>(job.strips) * job.row_blocks;
  const auto kernel = depthwise ? (vectorised ? GatherKernelOf<T, true, true>(team)
                                              : GatherKernelOf<T, false, true>(team))
                                : (vectorised ? GatherKernelOf<T, true, false>(team)
                                              : GatherKernelOf<T, false, false>(team));
  return Launch(kOp, kernel, blocks, kThreads, 0, stream, c, tensors, job);
}

// The passes over the steps that a plan has cut the pixels into.
template <typename T>
class InputsGradientPasses {
 public:
  using A = ComputeType<T>;

  InputsGradientPasses(const Geometry& geometry, const Convolution& convolution,
                       const InputsGradientSteps& steps, const DeviceLimits& limits, bool uses_fma,
                       const BackwardTensors<T>& tensors, char* workspace, void* stream)
      : g_(geometry),
        steps_(steps),
        limits_(limits),
        uses_fma_(uses_fma),
        tensors_(tensors),
        workspace_(workspace),
        stream_(stream),
        listed_(convolution),
        lists_(CellListsMemory<A>(workspace + steps.lists_at, workspace + steps.passing_at,
                                  steps.images_per_list * geometry.offset_groups,
                                  CellLists<A>::Cells(convolution),
                                  steps.pixels_per_list * geometry.offset_groups * geometry.taps())
                   .lists) {
    vectorised_ =
        IsVectorised(convolution, depthwise(), 16 / sizeof(T),
                     {tensors.inputs, tensors.filters, tensors.grad_output, tensors.grad_inputs});
    columns_.grad_output = tensors.grad_output;
    columns_.columns = reinterpret_cast<T*>(workspace + steps.passing_at);
    gather_.lists = lists_.lists;
    gather_.samples = lists_.samples;
    gather_.columns = columns_.columns;
    gather_.ranges = steps.ranges;
    gather_.partials =
        steps.ranges > 1 ? reinterpret_cast<A*>(workspace + steps.partials_at) : nullptr;
  }

  Status Run() {
    Status status;
    if (!depthwise()) {
      const auto how = PrepareForColumnsGradient<T>(listed_, uses_fma_, vectorised_, limits_);
      status = PrepareFilters(listed_, how, tensors_.filters, reinterpret_cast<T*>(workspace_),
                              &columns_.filters, stream_);
    }
    if (steps_.pixels_per_step == 0) {
      for (int64_t image = 0; image < g_.batch && status.ok(); image += steps_.images_per_list) {
        status = RunImages(image, std::min(image + steps_.images_per_list, g_.batch));
      }
    } else {
      for (int64_t image = 0; image < g_.batch && status.ok(); ++image) status = RunImage(image);
    }
    return status;
  }

 private:
  bool depthwise() const { return g_.is_depthwise(); }

  // Lists the samples of some images, and takes some of these in each step.
  Status RunImages(int64_t first_image, int64_t last_image) {
    Status status = List(first_image * g_.output_size(), last_image * g_.output_size(),
                         last_image - first_image);
    for (int64_t i = first_image; i < last_image && status.ok(); i += steps_.images_per_step) {
      const int64_t end = std::min(i + steps_.images_per_step, last_image);
      status = RunStep(i * g_.output_size(), end * g_.output_size(), end - i);
    }
    return status;
  }

  // Takes some pixels of an image in each step, which adds to the sums of those before.
  Status RunImage(int64_t image) {
    const int64_t image_size = g_.height * g_.width * g_.channels;
    T* const grad_inputs = tensors_.grad_inputs + image * image_size;
    gather_.sums = SumsOf(grad_inputs, workspace_ + steps_.sums_at);
    gather_.adds = false;
    Status status;
    const int64_t last = (image + 1) * g_.output_size();
    for (int64_t first = image * g_.output_size(); first < last && status.ok();
         first += steps_.pixels_per_step) {
      const int64_t end = std::min(first + steps_.pixels_per_step, last);
      status = List(first, end, 1);
      if (status.ok()) status = RunStep(first, end, 1);
      gather_.adds = true;
    }
    if (status.ok()) status = RoundSums(kOp, gather_.sums, image_size, grad_inputs, stream_);
    return status;
  }

  // Lists the samples of some pixels, of so many images.
  Status List(int64_t first_pixel, int64_t last_pixel, int64_t images) {
    listed_.first_pixel = first_pixel;
    listed_.last_pixel = last_pixel;
    return MakeCellLists<T>(listed_, tensors_, images * g_.offset_groups, lists_, stream_);
  }

  // The pixels of a step, some of those listed.
  Status RunStep(int64_t first_pixel, int64_t last_pixel, int64_t images) {
    Convolution step = listed_;
    step.first_pixel = first_pixel;
    step.last_pixel = last_pixel;
    gather_.first_pixel = first_pixel - listed_.first_pixel;
    gather_.pixels = last_pixel - first_pixel;
    gather_.first_image = gather_.first_pixel / g_.output_size();
    Status status;
    if (!depthwise()) {
      status = ColumnsGradient(step, columns_, uses_fma_, vectorised_, limits_, stream_);
    }
    if (status.ok()) {
      status = LaunchGather(listed_, tensors_, depthwise(), vectorised_, steps_.team, images,
                            gather_, stream_);
    }
    if (status.ok() && gather_.partials != nullptr) {
      status =
          Launch(kOp, ReducePartialsKernel<T>,
                 CeilDiv(gather_.pixels * g_.offset_groups * g_.taps(), kThreads), kThreads, 0,
                 stream_, step, tensors_, static_cast<const A*>(gather_.partials), steps_.ranges);
    }
    return status;
  }

  const Geometry& g_;
  const InputsGradientSteps& steps_;
  const DeviceLimits& limits_;
  bool uses_fma_, vectorised_;
  const BackwardTensors<T>& tensors_;
  char* workspace_;
  void* stream_;
  Convolution listed_;  // of the listed pixels
  CellLists<A> lists_;
  ColumnsGradientJob<T> columns_;
  GatherJob<T> gather_;
};

template <typename T>
Status BackwardPlan<T>::RunInputs(const BackwardTensors<T>& tensors, void* workspace,
                                  void* stream) const {
  const Geometry& g = geometry_;
  if (!status_.ok()) return status_;
  if (g.output_pixels() == 0) {
    const int64_t size = g.batch * g.height * g.width * g.channels;
    return FillZeros(kOp, tensors.grad_inputs, size * sizeof(T), stream);
  }
  return InputsGradientPasses<T>(g, convolution_, steps_, limits_, UsesFma<T>(options_), tensors,
                                 static_cast<char*>(workspace), stream)
      .Run();
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_INPUTS_GRADIENT_H_
