// What CUDA handlers have: XLA's stream, its allocator, and the caller's settings.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_XLA_CUDA_CONTEXT_H_
#define TF_DEFORMABLE_CC_ADAPTERS_XLA_CUDA_CONTEXT_H_

#include <optional>

#include "adapters/xla/handler.h"
#include "kernels/cuda/options.h"

namespace tf_deformable {

// How handlers of a CUDA device are bound: to HandleOnCuda.
inline auto CudaBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::PlatformStream<void*>>()
      .Ctx<ffi::ScratchAllocator>()
      .RemainingArgs()
      .RemainingRets()
      .Attrs();
}

struct CudaContext {
  static constexpr bool kOperandsAreOnHost = false;

  const char* op;
  void* stream;  // a cudaStream_t
  ffi::ScratchAllocator& memory;
  CudaOptions options;

  // Puts a plan's work into the stream. XLA takes the workspace back when the handler returns, and
  // hands it on in the order of the stream.
  template <typename Plan, typename Geometry, typename Tensors>
  Status RunPlan(const Geometry& geometry, const Tensors& tensors) const;
};

// Reads the attributes that calls on a CUDA device have beside the operator's.
inline Status ReadOptions(const char* op, const ffi::Dictionary& attributes, CudaOptions* options) {
  AttributeReader read(op, attributes);
  Status status = read("tensor_float_32", &options->tensor_float_32);
  return status.ok() ? read("deterministic", &options->deterministic) : status;
}

template <typename Plan, typename Geometry, typename Tensors>
Status CudaContext::RunPlan(const Geometry& geometry, const Tensors& tensors) const {
  const Plan plan(geometry, options);
  void* workspace = nullptr;
  if (plan.workspace_bytes() > 0) {
    const std::optional<void*> allocated = memory.Allocate(plan.workspace_bytes(), 256);
    if (!allocated) {
      return Status(Status::Code::kOutOfMemory,
                    std::string(op) + ": no memory for a workspace of " +
                        std::to_string(plan.workspace_bytes()) + " bytes");
    }
    workspace = *allocated;
  }
  return plan.Run(tensors, workspace, stream);
}

// The handler of a call. Device holds a CudaContext, and is what Compute asks for.
template <typename Call, typename Device>
ffi::Error HandleOnCuda(void* stream, ffi::ScratchAllocator memory, ffi::RemainingArgs operands,
                        ffi::RemainingRets results, ffi::Dictionary attributes) {
  CudaOptions options;
  Status status = ReadOptions(Call::kOp, attributes, &options);
  if (!status.ok()) return ToFfiError(status);
  Device device{{Call::kOp, stream, memory, options}};
  return ToFfiError(Compute<Call, CudaContext>(device, operands, results, attributes));
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_XLA_CUDA_CONTEXT_H_
