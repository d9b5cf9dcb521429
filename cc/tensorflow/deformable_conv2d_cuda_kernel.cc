// CUDA OpKernels of TFDeformable>DeformableConv2D and its gradient.

#include "deformable/deformable_conv2d_cuda.h"
#include "tensorflow/cuda_context.h"
#include "tensorflow/deformable_conv2d_kernel.h"
#include "tensorflow/tf_executor.h"

namespace tf_deformable {
namespace {

template <typename S>
struct Cuda {
  static void Forward(tensorflow::OpKernelContext* context,
                      const DeformableConv2DGeometry& geometry,
                      const DeformableConv2DForward<S>& tensors) {
    Run<DeformableConv2DForwardCudaPlan<S>>(context, geometry, tensors);
  }
  static void Backward(tensorflow::OpKernelContext* context,
                       const DeformableConv2DGeometry& geometry,
                       const DeformableConv2DBackward<S>& tensors) {
    Run<DeformableConv2DBackwardCudaPlan<S>>(context, geometry, tensors);
  }

 private:
  template <typename Plan, typename Tensors>
  static void Run(tensorflow::OpKernelContext* context, const DeformableConv2DGeometry& geometry,
                  const Tensors& tensors) {
    const Plan plan(geometry, TensorFlowsCudaOptions());
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, plan.workspace_bytes(), &workspace));
    OP_REQUIRES_OK(context, ToStatus(plan.Run(tensors, workspace.data(), CudaStream(context))));
  }
};

TF_DEFORMABLE_REGISTER_CONV2D(tensorflow::DEVICE_GPU, Cuda, Eigen::half)
TF_DEFORMABLE_REGISTER_CONV2D(tensorflow::DEVICE_GPU, Cuda, Eigen::bfloat16)
TF_DEFORMABLE_REGISTER_CONV2D(tensorflow::DEVICE_GPU, Cuda, float)
TF_DEFORMABLE_REGISTER_CONV2D(tensorflow::DEVICE_GPU, Cuda, double)

}  // namespace
}  // namespace tf_deformable
