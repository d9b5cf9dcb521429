// CPU OpKernels of TFDeformable>RoiPool and its gradient.

#include "adapters/tensorflow/roi_pool_kernel.h"

#include <algorithm>

#include "adapters/tensorflow/tf_executor.h"
#include "kernels/roi_pool/cpu_plan.h"

namespace tf_deformable {
namespace {

using tensorflow::OpKernelContext;

template <typename S>
struct Cpu {
  static std::string CheckIndices(const RoIPoolGeometry& geometry, const int32_t* box_indices) {
    return CheckBoxIndices(geometry, box_indices);
  }

  template <typename From, typename To>
  static absl::Status Convert(OpKernelContext*, const From* from, int64_t size, To* to) {
    std::copy(from, from + size, to);
    return absl::OkStatus();
  }

  static void Forward(OpKernelContext* context, const RoIPoolGeometry& geometry,
                      const RoIPoolTensors<S>& tensors, S* output) {
    TfExecutor executor(context);
    const RoIPoolForwardPlan<S> plan(geometry, executor.num_workers());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    plan.Run(tensors, output, executor, workspace.data());
  }

  static void Backward(OpKernelContext* context, const RoIPoolGeometry& geometry,
                       const RoIPoolTensors<S>& tensors, const S* grad_output, S* grad_inputs,
                       SamplingTensor<S> grad_offsets, SamplingTensor<S> grad_mask) {
    TfExecutor executor(context);
    const RoIPoolBackwardPlan<S> plan(geometry, executor.num_workers());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    plan.Run(tensors, grad_output, grad_inputs, grad_offsets, grad_mask, executor,
             workspace.data());
  }
};

[[maybe_unused]] const bool registered =
    RegisterRoIPool<Eigen::half, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterRoIPool<Eigen::bfloat16, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterRoIPool<float, Cpu>(tensorflow::DEVICE_CPU) &&
    RegisterRoIPool<double, Cpu>(tensorflow::DEVICE_CPU);

}  // namespace
}  // namespace tf_deformable
