#include "kernels/cuda/device_limits.h"

#include "kernels/cuda/primitives.h"
#include "kernels/cuda/warpgroup.h"

namespace tf_deformable {
namespace cuda {

// The emulation has the limits of its own device.
#if !defined(TF_DEFORMABLE_CUDA_EMULATION)
namespace {

// Whether the device's code of this library is for 9.0a is not to be seen from the host, but how
// much shared memory this takes is. It is never launched.
__global__ void WarpgroupProbe(int32_t* to) {
  __shared__ volatile int32_t values[kHasWarpgroupProducts ? 4096 : 32];
  values[threadIdx.x] = to[threadIdx.x];
  __syncthreads();
  to[threadIdx.x] = values[blockDim.x - threadIdx.x];
}

Status ReadDeviceLimits(const char* op, DeviceLimits* limits) {
  int device, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto get = [&](cudaDeviceAttr attribute, int* value) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  get(cudaDevAttrMultiProcessorCount, &limits->multiprocessors);
  get(cudaDevAttrMaxSharedMemoryPerBlockOptin, &limits->shared_bytes_per_block);
  get(cudaDevAttrMaxSharedMemoryPerMultiprocessor, &limits->shared_bytes_per_multiprocessor);
  get(cudaDevAttrComputeCapabilityMajor, &major);
  get(cudaDevAttrComputeCapabilityMinor, &minor);
  if (error == cudaSuccess && major == 9 && minor == 0) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, WarpgroupProbe);
    limits->has_warpgroup_products =
        error == cudaSuccess && attributes.sharedSizeBytes >= 4096 * sizeof(int32_t);
  }
  return ToStatus(op, error);
}

}  // namespace
#endif

Status GetDeviceLimits(const char* op, const CudaOptions& options, DeviceLimits* limits) {
  const Status status = ReadDeviceLimits(op, limits);
  if (options.multiprocessors > 0) limits->multiprocessors = options.multiprocessors;
  limits->has_warpgroup_products &= options.warpgroup_products;
  return status;
}

}  // namespace cuda
}  // namespace tf_deformable
