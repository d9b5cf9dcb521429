// What CUDA kernels need of an OpKernel: TensorFlow's stream and its settings.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CUDA_CONTEXT_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CUDA_CONTEXT_H_

#include "kernels/cuda/options.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace tf_deformable {

// A cudaStream_t.
void* CudaStream(tensorflow::OpKernelContext* context);

// As tf.config.experimental.enable_tensor_float_32_execution and enable_op_determinism say.
CudaOptions TensorFlowsCudaOptions();

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CUDA_CONTEXT_H_
