#include "kernels/roi_pool/cuda_plan.h"

#include <algorithm>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/roi_pool/cuda_kernels.h"

namespace tf_deformable {
namespace {

using namespace cuda;

constexpr int64_t kInputsGradientBytes = 32 << 20;
constexpr int64_t kPartialsBytes = 16 << 20;
constexpr int64_t kTapsInSharedMemory = 40 << 10;  // more would leave a multiprocessor few blocks
constexpr int64_t kMostUnits = kRoIThreads / 2;    // a thread to each axis
constexpr int64_t kBlocksOfEach = 8;               // multiprocessor: enough to keep it busy

std::string ErrorText(const char* error) {
  return error == nullptr ? "" : std::string("deformable_roi_pool: CUDA says: ") + error;
}

std::string CheckFits(const RoIPoolGeometry& g) {
  constexpr int64_t kMost = 1 << 30;
  constexpr int64_t kMostPixels = 1 << 24;  // along an axis: exact as float
  if (g.height <= kMostPixels && g.width <= kMostPixels && g.batch <= kMost &&
      g.channels <= kMost && g.bins() <= kMost && g.classes <= kMost) {
    return "";
  }
  return "deformable_roi_pool: a GPU takes maps of at most 2^24 pixels along an axis, and 2^30 "
         "channels and bins, got " +
         ToString({g.batch, g.height, g.width, g.channels});
}

// How many units a block takes at a time, and where their taps are.
struct Blocks {
  int64_t units_per_block, blocks, shared_bytes, taps_bytes;
};

template <typename A>
Blocks ChooseBlocks(const RoIPoolGeometry& g, int multiprocessors) {
  const int64_t unit_bytes = RoIUnitBytes<A>(AxisCapacity(g));
  const int64_t units = g.boxes * g.bins() * g.classes;
  Blocks b;
  b.units_per_block = std::clamp<int64_t>(kTapsInSharedMemory / unit_bytes, 1, kMostUnits);
  // Few units are spread over all multiprocessors.
  b.units_per_block =
      std::clamp<int64_t>(CeilDiv(units, kBlocksOfEach * multiprocessors), 1, b.units_per_block);
  b.blocks = std::min(CeilDiv(units, b.units_per_block), 4 * kBlocksOfEach * multiprocessors);
  const bool shared = b.units_per_block * unit_bytes <= kTapsInSharedMemory;
  b.shared_bytes = shared ? b.units_per_block * unit_bytes : 0;
  if (!shared) b.blocks = std::min<int64_t>(b.blocks, multiprocessors);
  b.taps_bytes = shared ? 0 : RoundUp(b.blocks * b.units_per_block * unit_bytes, 256);
  return b;
}

// The least power of 2 that is enough for so many, at most a warp.
int32_t ChooseLanes(int64_t runs) {
  int32_t lanes = 1;
  while (lanes < 32 && lanes < runs) lanes *= 2;
  return lanes;
}

template <typename T>
bool IsVectorised(const RoIPoolGeometry& g, int lanes, std::initializer_list<const void*> tensors) {
  for (const void* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return false;
  }
  return g.class_depth() % lanes == 0;
}

RoIJob MakeJob(const RoIPoolGeometry& g, int64_t units_per_block, int64_t blocks, char* taps) {
  RoIJob job;
  job.geometry = g;
  job.first_unit = 0;
  job.last_unit = g.boxes * g.bins() * g.classes;
  job.blocks = blocks;
  job.units_per_block = static_cast<int32_t>(units_per_block);
  job.capacity = static_cast<int32_t>(AxisCapacity(g));
  job.first_image = 0;
  job.last_image = std::max<int64_t>(g.batch, 1);
  job.taps = taps;
  return job;
}

}  // namespace

template <typename T>
RoIPoolForwardCudaPlan<T>::RoIPoolForwardCudaPlan(const RoIPoolGeometry& geometry,
                                                  const CudaOptions&)
    : geometry_(geometry), error_(CheckFits(geometry)) {
  DeviceLimits limits;
  if (error_.empty()) error_ = ErrorText(GetDeviceLimits(&limits));
  if (!error_.empty() || geometry.boxes == 0) return;
  const Blocks blocks = ChooseBlocks<ComputeType<T>>(geometry, limits.multiprocessors);
  units_per_block_ = blocks.units_per_block;
  blocks_ = blocks.blocks;
  shared_bytes_ = blocks.shared_bytes;
  workspace_bytes_ = blocks.taps_bytes;
}

template <typename T>
std::string RoIPoolForwardCudaPlan<T>::Run(const RoIPoolTensors<T>& tensors, T* output,
                                           void* workspace, void* stream) const {
  if (!error_.empty() || geometry_.boxes == 0) return error_;
  RoIJob job = MakeJob(geometry_, units_per_block_, blocks_,
                       workspace_bytes_ > 0 ? static_cast<char*>(workspace) : nullptr);
  const bool vectorised = IsVectorised<T>(geometry_, 16 / sizeof(T), {tensors.inputs, output});
  const int64_t run = vectorised ? 16 / sizeof(T) : 1;
  job.lanes = ChooseLanes(CeilDiv(geometry_.class_depth(), run));
  return ErrorText(
      Launch(vectorised ? RoIPoolForwardKernel<T, true> : RoIPoolForwardKernel<T, false>, blocks_,
             kRoIThreads, shared_bytes_, stream, job, tensors, output));
}

template <typename T>
RoIPoolBackwardCudaPlan<T>::RoIPoolBackwardCudaPlan(const RoIPoolGeometry& g,
                                                    const CudaOptions& options)
    : geometry_(g), deterministic_(options.deterministic), error_(CheckFits(g)) {
  using A = ComputeType<T>;
  DeviceLimits limits;
  if (error_.empty()) error_ = ErrorText(GetDeviceLimits(&limits));
  if (!error_.empty() || g.boxes == 0) return;
  const Blocks blocks = ChooseBlocks<A>(g, limits.multiprocessors);
  units_per_block_ = blocks.units_per_block;
  blocks_ = blocks.blocks;
  shared_bytes_ = blocks.shared_bytes;
  // 16-bit gradients are summed in float and rounded once, some images at a time.
  const bool widened = !std::is_same_v<T, A>;
  const int64_t image_bytes =
      widened ? g.height * g.width * g.channels * static_cast<int64_t>(sizeof(A)) : 0;
  images_per_step_ = std::clamp<int64_t>(kInputsGradientBytes / std::max<int64_t>(image_bytes, 1),
                                         1, std::max<int64_t>(g.batch, 1));
  const int64_t box_bytes = g.bins() * g.classes * 3 * static_cast<int64_t>(sizeof(A));
  boxes_per_step_ = std::clamp<int64_t>(kPartialsBytes / box_bytes, 1, g.boxes);
  grad_inputs_at_ = blocks.taps_bytes;
  partials_at_ = RoundUp(grad_inputs_at_ + images_per_step_ * image_bytes, 256);
  workspace_bytes_ = partials_at_ + boxes_per_step_ * box_bytes;
}

template <typename T>
std::string RoIPoolBackwardCudaPlan<T>::Run(const RoIPoolTensors<T>& tensors, const T* grad_output,
                                            T* grad_inputs, SamplingTensor<T> grad_offsets,
                                            SamplingTensor<T> grad_mask, void* workspace,
                                            void* stream) const {
  using A = ComputeType<T>;
  constexpr bool kWidened = !std::is_same_v<T, A>;
  const RoIPoolGeometry& g = geometry_;
  if (!error_.empty()) return error_;
  const int64_t image_size = g.height * g.width * g.channels;
  if (!kWidened || g.boxes == 0) {
    const char* error = FillZeros(grad_inputs, g.batch * image_size * sizeof(T), stream);
    if (error != nullptr || g.boxes == 0) return ErrorText(error);
  }
  char* const space = static_cast<char*>(workspace);
  RoIJob job = MakeJob(g, units_per_block_, blocks_, grad_inputs_at_ > 0 ? space : nullptr);
  const bool vectorised = IsVectorised<T>(g, 16 / sizeof(T) > 4 ? 16 / sizeof(T) : 4,
                                          {tensors.inputs, grad_output, grad_inputs});
  job.lanes = ChooseLanes(CeilDiv(g.class_depth(), vectorised ? 4 : 1));
  const bool reduces = grad_offsets || grad_mask;
  const int64_t units_per_box = g.bins() * g.classes;

  for (int64_t image = 0; image < std::max<int64_t>(g.batch, 1); image += images_per_step_) {
    job.first_image = image;
    job.last_image = std::min(image + images_per_step_, std::max<int64_t>(g.batch, 1));
    const int64_t images = std::min(job.last_image, g.batch) - image;
    A* window;
    if constexpr (kWidened) {
      window = reinterpret_cast<A*>(space + grad_inputs_at_);
      if (const char* error = FillZeros(window, images * image_size * sizeof(A), stream)) {
        return ErrorText(error);
      }
    } else {
      window = grad_inputs + image * image_size;
    }
    if (deterministic_) {
      const char* error = Launch(RoIPoolInOrderKernel<T>, CeilDiv(images * g.channels, kRoIThreads),
                                 kRoIThreads, 0, stream, job, tensors, grad_output, window);
      if (error != nullptr) return ErrorText(error);
    }
    for (int64_t box = 0; box < g.boxes; box += boxes_per_step_) {
      job.first_unit = box * units_per_box;
      job.last_unit = std::min(box + boxes_per_step_, g.boxes) * units_per_box;
      RoIGradients<A> gradients;
      gradients.grad_inputs = deterministic_ ? nullptr : window;
      gradients.partials = reduces ? reinterpret_cast<A*>(space + partials_at_) : nullptr;
      if (deterministic_ && !reduces) break;
      const char* error =
          Launch(vectorised ? RoIPoolBackwardKernel<T, true> : RoIPoolBackwardKernel<T, false>,
                 blocks_, kRoIThreads, shared_bytes_, stream, job, tensors, grad_output, gradients);
      if (error != nullptr) return ErrorText(error);
      if (!reduces) continue;
      const int64_t boxes = std::min(boxes_per_step_, g.boxes - box);
      const int64_t sums = (grad_offsets ? boxes * (g.offsets_per_box() / 2) : 0) +
                           (grad_mask ? boxes * g.bins() : 0);
      error =
          Launch(RoIPoolReduceKernel<T>, CeilDiv(sums, kRoIThreads), kRoIThreads, 0, stream, job,
                 tensors, static_cast<const A*>(gradients.partials), grad_offsets, grad_mask);
      if (error != nullptr) return ErrorText(error);
    }
    if constexpr (kWidened) {
      const int64_t size = images * image_size;
      const char* error =
          Launch(RoundKernel<T>, CeilDiv(size, kRoIThreads), kRoIThreads, 0, stream,
                 static_cast<const A*>(window), size, grad_inputs + image * image_size);
      if (error != nullptr) return ErrorText(error);
    }
  }
  return "";
}

std::string ConvertBoxes(const float* from, int64_t size, double* to, void* stream) {
  return ErrorText(Launch(ConvertKernel<float, double>, CeilDiv(size, kRoIThreads), kRoIThreads, 0,
                          stream, from, size, to));
}

std::string ConvertBoxes(const double* from, int64_t size, float* to, void* stream) {
  return ErrorText(Launch(ConvertKernel<double, float>, CeilDiv(size, kRoIThreads), kRoIThreads, 0,
                          stream, from, size, to));
}

template class RoIPoolForwardCudaPlan<float>;
template class RoIPoolForwardCudaPlan<double>;
template class RoIPoolForwardCudaPlan<Half>;
template class RoIPoolForwardCudaPlan<BFloat16>;
template class RoIPoolBackwardCudaPlan<float>;
template class RoIPoolBackwardCudaPlan<double>;
template class RoIPoolBackwardCudaPlan<Half>;
template class RoIPoolBackwardCudaPlan<BFloat16>;

}  // namespace tf_deformable
