// The CUDA kernels behind plain C functions, so that Python's ctypes can call them: with tensors of
// PyTorch on a GPU, or, compiled for the emulation, with arrays of NumPy. See kernels.py.
//
// The operators return null, or until the next call a sentence that says what is wrong, of which
// tf_deformable_error_code() is the kind: a number of Status::Code.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/cuda/primitives.h"
#include "kernels/deformable_attention/cuda_plan.h"
#include "kernels/deformable_conv2d/cuda_plan.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace {

using namespace tf_deformable;

Status last_status;

const char* Report(const Status& status) {
  last_status = status;
  return status.ok() ? nullptr : last_status.message().c_str();
}

Shape MakeShape(const int64_t* dims, int rank) {
  return Shape(std::vector<int64_t>(dims, dims + rank));
}

// Calls function(T{}) for the element type of that number.
template <typename F>
Status ForType(int type, const F& function) {
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
  return Status(Status::Code::kInvalidArgument, "no such type");
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
deformable_conv2d::ForwardTensors<T> MakeForward(Pointers next) {
  return {next, next, next, next, next, next};
}

template <typename T>
deformable_conv2d::BackwardTensors<T> MakeBackward(Pointers next) {
  return {next, next, next, next, next, next, next, next, next};
}

template <typename T>
roi_pool::ForwardTensors<T> MakeRoIPoolForward(Pointers next) {
  return {{next, next, next, next, next}, next};
}

template <typename T>
roi_pool::BackwardTensors<T> MakeRoIPoolBackward(Pointers next) {
  return {{next, next, next, next, next}, next, next, next, next};
}

template <typename T>
deformable_attention::ForwardTensors<T> MakeAttentionForward(Pointers next) {
  return {{next, next, next}, next};
}

template <typename T>
deformable_attention::BackwardTensors<T> MakeAttentionBackward(Pointers next) {
  return {{next, next, next}, next, next, next, next};
}

// A workspace of null: says how large it has to be.
template <typename Plan, typename Run>
Status RunOrMeasure(const Plan& plan, int64_t* workspace_bytes, const void* workspace,
                    const Run& run) {
  if (workspace != nullptr) return run(plan);
  *workspace_bytes = plan.workspace_bytes();
  return Status();
}

// In the order of CudaOptions.
CudaOptions MakeOptions(const int* of) {
  CudaOptions options;
  options.tensor_float_32 = of[0] != 0;
  options.deterministic = of[1] != 0;
  options.warpgroup_products = of[2] != 0;
  options.multiprocessors = of[3];
  options.columns_bytes = of[4];
  options.forward_tile_rows = of[5];
  options.forward_tile_columns = of[6];
  return options;
}

// The kernels that were launched since the library was loaded, by their host functions.
std::set<const void*> launched;
std::string launched_names;

std::string NameOf(const void* kernel) {
#if defined(TF_DEFORMABLE_CUDA_EMULATION)
  Dl_info info;
  return dladdr(kernel, &info) != 0 && info.dli_sname != nullptr ? info.dli_sname : "?";
#else
  const char* name = nullptr;
  return cudaFuncGetName(&name, kernel) == cudaSuccess && name != nullptr ? name : "?";
#endif
}

}  // namespace

void tf_deformable::cuda::ObserveLaunch(const void* kernel) { launched.insert(kernel); }

extern "C" {

__attribute__((visibility("default"))) int tf_deformable_error_code() {
  return static_cast<int>(last_status.code());
}

// shapes: inputs [4], filters [4], offsets [4]; attributes: strides [2], dilations [2],
// padding [4]; options: of CudaOptions; wide_sampling: whether offsets, mask and their gradients
// have the type of positions; gradient: 0 forward, 1 all gradients, 2 without the filters', 3
// theirs only; tensors: of deformable_conv2d::ForwardTensors or deformable_conv2d::BackwardTensors.
__attribute__((visibility("default"))) const char* tf_deformable_conv2d(
    int type, int wide_sampling, int gradient, const int64_t* shapes, const int64_t* attributes,
    const int* options, void* const* tensors, int64_t* workspace_bytes, void* workspace,
    void* stream) {
  deformable_conv2d::Arguments a;
  a.inputs = MakeShape(shapes, 4);
  a.filters = MakeShape(shapes + 4, 4);
  a.offsets = MakeShape(shapes + 8, 4);
  a.strides = {attributes[0], attributes[1]};
  a.dilations = {attributes[2], attributes[3]};
  a.padding = deformable_conv2d::Padding::kExplicit;
  a.explicit_paddings = {attributes[4], attributes[5], attributes[6], attributes[7]};
  deformable_conv2d::Geometry g;
  const Status parsed = deformable_conv2d::Parse(a, &g);
  if (!parsed.ok()) return Report(parsed);
  const Pointers pointers(tensors, wide_sampling != 0);
  return Report(ForType(type, [&](auto element) {
    using T = decltype(element);
    if (gradient == 0) {
      return RunOrMeasure(deformable_conv2d::cuda::ForwardPlan<T>(g, MakeOptions(options)),
                          workspace_bytes, workspace, [&](const auto& plan) {
                            return plan.Run(MakeForward<T>(pointers), workspace, stream);
                          });
    }
    return RunOrMeasure(deformable_conv2d::cuda::BackwardPlan<T>(g, MakeOptions(options)),
                        workspace_bytes, workspace, [&](const auto& plan) {
                          const auto tensors = MakeBackward<T>(pointers);
                          if (gradient == 2) return plan.RunInputs(tensors, workspace, stream);
                          if (gradient == 3) return plan.RunFilters(tensors, workspace, stream);
                          return plan.Run(tensors, workspace, stream);
                        });
  }));
}

// shapes: inputs [4], boxes [2], offsets [5] (its first -1: none); integers: ph, pw, group_size,
// samples_per_bin, aligned; numbers: spatial_scale, gamma; tensors: of roi_pool::ForwardTensors
// or roi_pool::BackwardTensors.
__attribute__((visibility("default"))) const char* tf_deformable_roi_pool(
    int type, int wide_sampling, int gradient, const int64_t* shapes, const int64_t* integers,
    const float* numbers, const int* options, void* const* tensors, int64_t* workspace_bytes,
    void* workspace, void* stream) {
  roi_pool::Arguments a;
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
  roi_pool::Geometry g;
  const Status parsed = roi_pool::Parse(a, &g);
  if (!parsed.ok()) return Report(parsed);
  return Report(ForType(type, [&](auto element) {
    using T = decltype(element);
    const Pointers pointers(tensors, wide_sampling != 0);
    if (gradient == 0) {
      return RunOrMeasure(roi_pool::cuda::ForwardPlan<T>(g, MakeOptions(options)), workspace_bytes,
                          workspace, [&](const auto& plan) {
                            return plan.Run(MakeRoIPoolForward<T>(pointers), workspace, stream);
                          });
    }
    return RunOrMeasure(roi_pool::cuda::BackwardPlan<T>(g, MakeOptions(options)), workspace_bytes,
                        workspace, [&](const auto& plan) {
                          return plan.Run(MakeRoIPoolBackward<T>(pointers), workspace, stream);
                        });
  }));
}

// shapes: value [4], attention_weights [5], or [4] with num_points; level_sizes: [levels, 2];
// num_points: [levels], or null: all levels have as many; tensors: of
// deformable_attention::ForwardTensors or deformable_attention::BackwardTensors.
__attribute__((visibility("default"))) const char* tf_deformable_attention(
    int type, int wide_sampling, int gradient, const int64_t* shapes, int levels,
    const int64_t* level_sizes, const int64_t* num_points, int normalized, const int* options,
    void* const* tensors, int64_t* workspace_bytes, void* workspace, void* stream) {
  using namespace deformable_attention;
  Arguments a;
  a.value = MakeShape(shapes, 4);
  a.spatial_shapes = Shape({levels, 2});
  a.attention_weights = MakeShape(shapes + 4, num_points == nullptr ? 5 : 4);
  if (num_points != nullptr) a.num_points.assign(num_points, num_points + levels);
  std::vector<int64_t> pairs = a.attention_weights.dims;
  pairs.push_back(2);
  a.sampling_locations = Shape(pairs);
  a.level_sizes = std::vector<int64_t>(level_sizes, level_sizes + 2 * levels);
  a.coordinates = normalized != 0 ? Coordinates::kNormalized : Coordinates::kPixels;
  Geometry g;
  const Status parsed = Parse(a, &g);
  if (!parsed.ok()) return Report(parsed);
  return Report(ForType(type, [&](auto element) {
    using T = decltype(element);
    const Pointers pointers(tensors, wide_sampling != 0);
    if (gradient == 0) {
      return RunOrMeasure(deformable_attention::cuda::ForwardPlan<T>(g, MakeOptions(options)),
                          workspace_bytes, workspace, [&](const auto& plan) {
                            return plan.Run(MakeAttentionForward<T>(pointers), workspace, stream);
                          });
    }
    return RunOrMeasure(deformable_attention::cuda::BackwardPlan<T>(g, MakeOptions(options)),
                        workspace_bytes, workspace, [&](const auto& plan) {
                          return plan.Run(MakeAttentionBackward<T>(pointers), workspace, stream);
                        });
  }));
}

// from, to: `size` numbers, of float and double if the type is 0, of double and float if it is 1.
__attribute__((visibility("default"))) const char* tf_deformable_convert_boxes(
    int type, const void* from, int64_t size, void* to, void* stream) {
  if (type == 0) {
    return Report(roi_pool::cuda::ConvertBoxes(static_cast<const float*>(from), size,
                                               static_cast<double*>(to), stream));
  }
  return Report(roi_pool::cuda::ConvertBoxes(static_cast<const double*>(from), size,
                                             static_cast<float*>(to), stream));
}

// The symbols of the kernels that were launched so far, one a line; valid until the next call.
__attribute__((visibility("default"))) const char* tf_deformable_launched() {
  launched_names.clear();
  for (const void* kernel : launched) launched_names += NameOf(kernel) + "\n";
  return launched_names.c_str();
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
