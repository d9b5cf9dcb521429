// What CPU handlers have: XLA's intra-op thread pool, and memory for a workspace.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_XLA_CPU_CONTEXT_H_
#define TF_DEFORMABLE_CC_ADAPTERS_XLA_CPU_CONTEXT_H_

#include <functional>
#include <memory>
#include <utility>

#include "adapters/common/pool_executor.h"
#include "adapters/xla/handler.h"

namespace tf_deformable {

// How handlers of the CPU are bound: to HandleOnCpu.
inline auto CpuBinding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs();
}

// Aligned to 64 bytes. XLA:CPU has no allocator for its handlers, and as one more result of the
// call a workspace would have to be sized when the program is compiled, for threads not known then.
class HostWorkspace {
 public:
  explicit HostWorkspace(int64_t bytes);
  void* data() const { return data_.get(); }
  bool is_allocated() const { return data_ != nullptr; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
};

struct CpuContext {
  static constexpr bool kOperandsAreOnHost = true;

  const char* op;
  ffi::ThreadPool& pool;

  // On the pool's threads.
  template <typename Plan, typename Geometry, typename Tensors>
  Status RunPlan(const Geometry& geometry, const Tensors& tensors) const;
};

template <typename Plan, typename Geometry, typename Tensors>
Status CpuContext::RunPlan(const Geometry& geometry, const Tensors& tensors) const {
  PoolExecutor executor(pool.num_threads(),
                        [this](std::function<void()> work) { pool.Schedule(std::move(work)); });
  const Plan plan(geometry, executor.num_workers());
  const HostWorkspace workspace(plan.workspace_bytes());
  if (!workspace.is_allocated()) {
    return Status(Status::Code::kOutOfMemory, std::string(op) + ": no memory for a workspace of " +
                                                  std::to_string(plan.workspace_bytes()) +
                                                  " bytes");
  }
  plan.Run(tensors, executor, workspace.data());
  return Status();
}

// The handler of a call. Device holds a CpuContext, and is what Compute asks for.
template <typename Call, typename Device>
ffi::Error HandleOnCpu(ffi::ThreadPool pool, ffi::RemainingArgs operands,
                       ffi::RemainingRets results, ffi::Dictionary attributes) {
  Device device{{Call::kOp, pool}};
  return ToFfiError(Compute<Call, CpuContext>(device, operands, results, attributes));
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_XLA_CPU_CONTEXT_H_
