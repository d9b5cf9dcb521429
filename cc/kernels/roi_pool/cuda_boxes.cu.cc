#include "kernels/cuda/reduce.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable::roi_pool::cuda {

using namespace tf_deformable::cuda;

Status ConvertBoxes(const float* from, int64_t size, double* to, void* stream) {
  return LaunchForElements(kOp, ConvertKernel<float, double>, size, stream, from, size, to);
}

Status ConvertBoxes(const double* from, int64_t size, float* to, void* stream) {
  return LaunchForElements(kOp, ConvertKernel<double, float>, size, stream, from, size, to);
}

}  // namespace tf_deformable::roi_pool::cuda
