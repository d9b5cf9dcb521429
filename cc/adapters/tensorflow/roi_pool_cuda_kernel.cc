// CUDA OpKernels of TFDeformable>RoiPool and its gradient.

#include "adapters/tensorflow/cuda_context.h"
#include "adapters/tensorflow/roi_pool_kernel.h"
#include "adapters/tensorflow/tf_executor.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable {
namespace {

using tensorflow::OpKernelContext;

template <typename S>
struct Cuda {
  // They are on the device, where the kernels make NaN of what is wrong.
  static std::string CheckIndices(const RoIPoolGeometry&, const int32_t*) { return ""; }

  template <typename From, typename To>
  static absl::Status Convert(OpKernelContext* context, const From* from, int64_t size, To* to) {
    return ToStatus(ConvertBoxes(from, size, to, CudaStream(context)));
  }

  static void Forward(OpKernelContext* context, const RoIPoolGeometry& geometry,
                      const RoIPoolTensors<S>& tensors, S* output) {
    const RoIPoolForwardCudaPlan<S> plan(geometry, TensorFlowsCudaOptions());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    OP_REQUIRES_OK(context,
                   ToStatus(plan.Run(tensors, output, workspace.data(), CudaStream(context))));
  }

  static void Backward(OpKernelContext* context, const RoIPoolGeometry& geometry,
                       const RoIPoolTensors<S>& tensors, const S* grad_output, S* grad_inputs,
                       SamplingTensor<S> grad_offsets, SamplingTensor<S> grad_mask) {
    const RoIPoolBackwardCudaPlan<S> plan(geometry, TensorFlowsCudaOptions());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    OP_REQUIRES_OK(context, ToStatus(plan.Run(tensors, grad_output, grad_inputs, grad_offsets,
                                              grad_mask, workspace.data(), CudaStream(context))));
  }
};

[[maybe_unused]] const bool registered =
    RegisterRoIPool<Eigen::half, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterRoIPool<Eigen::bfloat16, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterRoIPool<float, Cuda>(tensorflow::DEVICE_GPU) &&
    RegisterRoIPool<double, Cuda>(tensorflow::DEVICE_GPU);

}  // namespace
}  // namespace tf_deformable
