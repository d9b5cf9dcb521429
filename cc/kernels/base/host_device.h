// Functions that both the host and a CUDA device run.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_HOST_DEVICE_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_HOST_DEVICE_H_

// They are always inlined: the CPU kernels are compiled once per instruction set, and a compiled
// copy that two of these shared could hold instructions that the processor does not have.
#if defined(__CUDACC__)
#define TF_DEFORMABLE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TF_DEFORMABLE_HOST_DEVICE [[gnu::always_inline]] inline
#endif

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_HOST_DEVICE_H_
