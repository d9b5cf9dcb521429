// What CUDA kernels need of an OpKernel: TensorFlow's stream and its settings.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CUDA_CONTEXT_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CUDA_CONTEXT_H_

#include "adapters/tensorflow/status.h"
#include "adapters/tensorflow/tf_executor.h"
#include "kernels/cuda/options.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deformable {

// A cudaStream_t.
void* CudaStream(tensorflow::OpKernelContext* context);

// As tf.config.experimental.enable_tensor_float_32_execution and enable_op_determinism say.
CudaOptions TensorFlowsCudaOptions();

// Puts a plan's work into that stream.
template <typename Plan, typename Geometry, typename Tensors>
void RunCudaPlan(tensorflow::OpKernelContext* context, const Geometry& geometry,
                 const Tensors& tensors) {
  const Plan plan(geometry, TensorFlowsCudaOptions());
  tensorflow::Tensor workspace;
  OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
  OP_REQUIRES_OK(context, ToAbslStatus(plan.Run(tensors, workspace.data(), CudaStream(context))));
}

// A CUDA device for OperatorKernel, where a plan computes the call.
template <template <typename> class Plan>
struct OnCuda {
  template <typename S>
  struct Device : PreparesNothing {
    template <typename Geometry, typename Tensors>
    static void Run(tensorflow::OpKernelContext* context, const Geometry& geometry,
                    const Tensors& tensors) {
      RunCudaPlan<Plan<S>>(context, geometry, tensors);
    }
  };
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CUDA_CONTEXT_H_
