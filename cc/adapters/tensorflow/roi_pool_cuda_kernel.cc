// CUDA OpKernels of TFDeformable>RoiPool and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/roi_pool_kernel.h"
#include "adapters/tensorflow/status.h"
#include "adapters/tensorflow/tf_executor.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable {
namespace {

using tensorflow::OpKernelContext;

template <typename S>
struct Cuda {
  // They are on the device, where the kernels make NaN of what is wrong.
  static Status CheckIndices(const roi_pool::Geometry&, const int32_t*) { return Status(); }

  template <typename From, typename To>
  static absl::Status Convert(OpKernelContext* context, const From* from, int64_t size, To* to) {
    return ToAbslStatus(roi_pool::cuda::ConvertBoxes(from, size, to, CudaStream(context)));
  }

  static void Forward(OpKernelContext* context, const roi_pool::Geometry& geometry,
                      const roi_pool::ForwardTensors<S>& tensors) {
    Run<roi_pool::cuda::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Backward(OpKernelContext* context, const roi_pool::Geometry& geometry,
                       const roi_pool::BackwardTensors<S>& tensors) {
    Run<roi_pool::cuda::BackwardPlan<S>>(context, geometry, tensors);
  }

 private:
  template <typename Plan, typename Tensors>
  static void Run(OpKernelContext* context, const roi_pool::Geometry& geometry,
                  const Tensors& tensors) {
    const Plan plan(geometry, TensorFlowsCudaOptions());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    OP_REQUIRES_OK(context, ToAbslStatus(plan.Run(tensors, workspace.data(), CudaStream(context))));
  }
};

[[maybe_unused]] const bool registered =
    RegisterRoIPool<Eigen::half, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterRoIPool<Eigen::bfloat16, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterRoIPool<float, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterRoIPool<double, Cuda>(tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
