// The CUDA kernels behind plain C functions, so that Python's ctypes can call them: with tensors of
// PyTorch on a GPU, or, compiled for the emulation, with arrays of NumPy. See kernels.py.
//
// All return null, or a sentence that says what is wrong, until the next call.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/deformable_conv2d/cuda_plan.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace {

using namespace tf_deformable;

std::string last_error;

const char* Report(const std::string& error) {
  last_error = error;
  return error.empty() ? nullptr : last_error.c_str();
}

Shape MakeShape(const int64_t* dims, int rank) {
  return Shape(std::vector<int64_t>(dims, dims + rank));
}

// Calls function(T{}) for the element type of that number.
template <typename F>
std::string ForType(int type, const F& function) {
  switch (type) {
    case 0:
      return function(float{});
    case 1:
      return function(double{});
    case 2:
      return function(Half{});
    case 3:
      return function(BFloat16{});
  }
  return "no such type";
}

// Pointers to tensors, one after the other.
class Pointers {
 public:
  Pointers(void* const* next, bool wide_sampling) : next_(next), wide_sampling_(wide_sampling) {}

  template <typename P>
  operator P*() {
    return static_cast<P*>(*next_++);
  }
  // Offsets or a mask, whose elements may be wider than those of features.
  template <typename E>
  operator SamplingTensor<E>() {
    if (wide_sampling_) return static_cast<typename SamplingTensor<E>::Wide*>(*this);
    return static_cast<E*>(*this);
  }

 private:
  void* const* next_;
  bool wide_sampling_;
};

template <typename T>
DeformableConv2DForward<T> MakeForward(Pointers next) {
  return {next, next, next, next, next, next};
}

template <typename T>
DeformableConv2DBackward<T> MakeBackward(Pointers next) {
  return {next, next, next, next, next, next, next, next, next};
}

template <typename T>
RoIPoolTensors<T> MakeRoIPoolTensors(Pointers next) {
  return {next, next, next, next, next};
}

// A workspace of null: says how large it has to be.
template <typename Plan, typename Run>
std::string RunOrMeasure(const Plan& plan, int64_t* workspace_bytes, const void* workspace,
                         const Run& run) {
  if (workspace != nullptr) return run(plan);
  *workspace_bytes = plan.workspace_bytes();
  return "";
}

CudaOptions MakeOptions(int tensor_float_32, int deterministic) {
  CudaOptions options;
  options.tensor_float_32 = tensor_float_32 != 0;
  options.deterministic = deterministic != 0;
  return options;
}

}  // namespace

extern "C" {

// shapes: inputs [4], filters [4], offsets [4]; attributes: strides [2], dilations [2],
// padding [4]; wide_sampling: whether offsets, mask and their gradients have the type of positions;
// tensors: of DeformableConv2DForward or DeformableConv2DBackward.
__attribute__((visibility("default"))) const char* tf_deformable_conv2d(
    int type, int wide_sampling, int gradient, const int64_t* shapes, const int64_t* attributes,
    int tensor_float_32, int deterministic, void* const* tensors, int64_t* workspace_bytes,
    void* workspace, void* stream) {
  DeformableConv2DArguments a;
  a.inputs = MakeShape(shapes, 4);
  a.filters = MakeShape(shapes + 4, 4);
  a.offsets = MakeShape(shapes + 8, 4);
  a.strides = {attributes[0], attributes[1]};
  a.dilations = {attributes[2], attributes[3]};
  a.padding = Padding::kExplicit;
  a.explicit_paddings = {attributes[4], attributes[5], attributes[6], attributes[7]};
  DeformableConv2DGeometry g;
  const std::string invalid = ParseDeformableConv2D(a, &g);
  if (!invalid.empty()) return Report(invalid);
  const CudaOptions options = MakeOptions(tensor_float_32, deterministic);
  const Pointers pointers(tensors, wide_sampling != 0);
  return Report(ForType(type, [&](auto element) {
    using T = decltype(element);
    if (gradient == 0) {
      return RunOrMeasure(
          DeformableConv2DForwardCudaPlan<T>(g, options), workspace_bytes, workspace,
          [&](const auto& plan) { return plan.Run(MakeForward<T>(pointers), workspace, stream); });
    }
    return RunOrMeasure(
        DeformableConv2DBackwardCudaPlan<T>(g, options), workspace_bytes, workspace,
        [&](const auto& plan) { return plan.Run(MakeBackward<T>(pointers), workspace, stream); });
  }));
}

// shapes: inputs [4], boxes [2], offsets [5] (its first -1: none); integers: ph, pw, group_size,
// samples_per_bin, aligned; numbers: spatial_scale, gamma; tensors: of RoIPoolTensors, then output,
// or grad_output, grad_inputs, grad_offsets, grad_mask.
__attribute__((visibility("default"))) const char* tf_deformable_roi_pool(
    int type, int wide_sampling, int gradient, const int64_t* shapes, const int64_t* integers,
    const float* numbers, int deterministic, void* const* tensors, int64_t* workspace_bytes,
    void* workspace, void* stream) {
  RoIPoolArguments a;
  a.inputs = MakeShape(shapes, 4);
  a.boxes = MakeShape(shapes + 4, 2);
  a.box_indices = MakeShape(shapes + 4, 1);
  if (shapes[6] >= 0) a.offsets = MakeShape(shapes + 6, 5);
  a.output_size = {integers[0], integers[1]};
  a.group_size = integers[2];
  a.samples_per_bin = integers[3];
  a.aligned = integers[4] != 0;
  a.spatial_scale = numbers[0];
  a.gamma = numbers[1];
  RoIPoolGeometry g;
  const std::string invalid = ParseRoIPool(a, &g);
  if (!invalid.empty()) return Report(invalid);
  const CudaOptions options = MakeOptions(1, deterministic);
  return Report(ForType(type, [&](auto element) {
    using T = decltype(element);
    const auto arguments = MakeRoIPoolTensors<T>(Pointers(tensors, wide_sampling != 0));
    Pointers next(tensors + 5, wide_sampling != 0);
    if (gradient == 0) {
      return RunOrMeasure(
          RoIPoolForwardCudaPlan<T>(g, options), workspace_bytes, workspace,
          [&](const auto& plan) { return plan.Run(arguments, next, workspace, stream); });
    }
    return RunOrMeasure(RoIPoolBackwardCudaPlan<T>(g, options), workspace_bytes, workspace,
                        [&](const auto& plan) {
                          const T* const grad_output = next;
                          T* const grad_inputs = next;
                          const SamplingTensor<T> grad_offsets = next, grad_mask = next;
                          return plan.Run(arguments, grad_output, grad_inputs, grad_offsets,
                                          grad_mask, workspace, stream);
                        });
  }));
}

// Memory of the device. A failure, that of a kernel before too, ends the process.
#if defined(TF_DEFORMABLE_CUDA_EMULATION)
__attribute__((visibility("default"))) void* tf_deformable_allocate(int64_t bytes) {
  return std::aligned_alloc(256, (bytes + 256) / 256 * 256);
}
__attribute__((visibility("default"))) void tf_deformable_copy(void* to, const void* from,
                                                               int64_t bytes) {
  std::memcpy(to, from, bytes);
}
__attribute__((visibility("default"))) void tf_deformable_free(void* memory) { std::free(memory); }
#else
static void Require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::abort();
}
__attribute__((visibility("default"))) void* tf_deformable_allocate(int64_t bytes) {
  void* memory = nullptr;
  Require(cudaMalloc(&memory, bytes > 0 ? bytes : 1));
  return memory;
}
__attribute__((visibility("default"))) void tf_deformable_copy(void* to, const void* from,
                                                               int64_t bytes) {
  Require(cudaDeviceSynchronize());
  Require(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
__attribute__((visibility("default"))) void tf_deformable_free(void* memory) {
  Require(cudaFree(memory));
}
#endif

}  // extern "C"
