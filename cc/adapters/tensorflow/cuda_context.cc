#include "adapters/tensorflow/cuda_context.h"

#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "tensorflow/core/util/determinism.h"
#include "xla/stream_executor/stream.h"

namespace tf_deformable {

void* CudaStream(tensorflow::OpKernelContext* context) {
  return context->op_device_context()->stream()->platform_specific_handle().stream;
}

CudaOptions TensorFlowsCudaOptions() {
  CudaOptions options;
  options.tensor_float_32 = tensorflow::tensor_float_32_execution_enabled();
  options.deterministic = tensorflow::OpDeterminismRequired();
  return options;
}

}  // namespace tf_deformable
