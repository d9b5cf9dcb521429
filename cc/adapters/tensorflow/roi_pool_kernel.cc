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
  static absl::Status Prepare(OpKernelContext* context, const roi_pool::Geometry& geometry,
                              std::vector<TensorView>* inputs, tensorflow::Tensor* temporary) {
    const TensorView& indices = (*inputs)[roi_pool::ForwardCall::kBoxIndices];
    TF_RETURN_IF_ERROR(
        ToAbslStatus(roi_pool::CheckBoxIndices(geometry, indices.Data<const int32_t>())));
    return ConvertBoxes<S>(context, inputs, temporary, [](auto* from, int64_t size, auto* to) {
      std::copy(from, from + size, to);
      return absl::OkStatus();
    });
  }
  static void Run(OpKernelContext* context, const roi_pool::Geometry& geometry,
                  const roi_pool::ForwardTensors<S>& tensors) {
    RunPlan<roi_pool::cpu::ForwardPlan<S>>(context, geometry, tensors);
  }
  static void Run(OpKernelContext* context, const roi_pool::Geometry& geometry,
                  const roi_pool::BackwardTensors<S>& tensors) {
    RunPlan<roi_pool::cpu::BackwardPlan<S>>(context, geometry, tensors);
  }
};

[[maybe_unused]] const bool registered = RegisterRoIPool<Cpu>(tensorflow::DEVICE_CPU);

}  // namespace
}  // namespace tf_deformable
