// Threads and memory of an OpKernel: TensorFlow's intra-op thread pool and its allocator.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TF_EXECUTOR_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TF_EXECUTOR_H_

#include "adapters/common/pool_executor.h"
#include "adapters/tensorflow/operator_kernel.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deformable {

// Runs on the pool of the context's device.
PoolExecutor TfExecutor(tensorflow::OpKernelContext* context);

// Memory of TensorFlow's allocator, aligned to 64 bytes, accounted for by its profiler.
absl::Status AllocateWorkspace(tensorflow::OpKernelContext* context, int64_t bytes,
                               tensorflow::Tensor* workspace);

// Runs a plan of the CPU's on the pool's threads, in a workspace of that memory.
template <typename Plan, typename Geometry, typename Tensors>
void RunPlan(tensorflow::OpKernelContext* context, const Geometry& geometry,
             const Tensors& tensors) {
  PoolExecutor executor = TfExecutor(context);
  const Plan plan(geometry, executor.num_workers());
  tensorflow::Tensor workspace;
  OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
  plan.Run(tensors, executor, workspace.data());
}

// The CPU for OperatorKernel, where a plan computes the call.
template <template <typename> class Plan>
struct OnCpu {
  template <typename S>
  struct Device : PreparesNothing {
    template <typename Geometry, typename Tensors>
    static void Run(tensorflow::OpKernelContext* context, const Geometry& geometry,
                    const Tensors& tensors) {
      RunPlan<Plan<S>>(context, geometry, tensors);
    }
  };
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TF_EXECUTOR_H_
