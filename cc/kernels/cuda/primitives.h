// What the CUDA kernels use of the device, one function per instruction or idiom.
//
// The kernels are written in terms of this file alone, so that the tests can run them on a machine
// without a GPU: with TF_DEFORMABLE_CUDA_EMULATION, tests/native/cuda_emulation.h defines the same
// functions for the host, fragment layouts included.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_PRIMITIVES_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_PRIMITIVES_H_

#include <cstdint>

#include "kernels/base/float_types.h"
#include "kernels/base/host_device.h"
#include "kernels/base/status.h"

#if defined(TF_DEFORMABLE_CUDA_EMULATION)
#include "cuda_emulation.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define TF_DEFORMABLE_KERNEL(threads, blocks) __global__ __launch_bounds__(threads, blocks)
#define TF_DEFORMABLE_DEVICE __device__ __forceinline__

namespace tf_deformable {
namespace cuda {

// 16 bytes: the widest load and store of a thread.
struct alignas(16) Vector16 {
  uint32_t words[4];
};

// --- Threads -------------------------------------------------------------------------------------

TF_DEFORMABLE_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
TF_DEFORMABLE_DEVICE int64_t BlockIndex() { return blockIdx.x; }
TF_DEFORMABLE_DEVICE void SyncThreads() { __syncthreads(); }
TF_DEFORMABLE_DEVICE void SyncWarp() { __syncwarp(); }

// All lanes of the warp call it.
template <typename T>
TF_DEFORMABLE_DEVICE T ShuffleXor(T value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}

TF_DEFORMABLE_DEVICE char* SharedMemory() {
  extern __shared__ __align__(1024) char shared_memory[];
  return shared_memory;
}

// --- Memory --------------------------------------------------------------------------------------

// Of memory that nothing writes while the kernel runs.
TF_DEFORMABLE_DEVICE Vector16 LoadGlobal16(const void* from) {
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  return {{v.x, v.y, v.z, v.w}};
}
TF_DEFORMABLE_DEVICE uint2 LoadGlobal8(const void* from) {
  return __ldg(static_cast<const uint2*>(from));
}

TF_DEFORMABLE_DEVICE uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory in the background; zeros if not `present` (then `from` is not
// read, but must be a valid address).
TF_DEFORMABLE_DEVICE void CopyAsync16(void* to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(to)),
               "l"(from), "r"(present ? 16 : 0)
               : "memory");
}
TF_DEFORMABLE_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits for the thread's own copies, but for those of the last kPending commits.
template <int kPending>
TF_DEFORMABLE_DEVICE void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Adds to global memory; nothing is returned, nobody waits.
TF_DEFORMABLE_DEVICE void AtomicAdd(float* to, float value) { atomicAdd(to, value); }
TF_DEFORMABLE_DEVICE void AtomicAdd(double* to, double value) { atomicAdd(to, value); }
// Returns what was there.
TF_DEFORMABLE_DEVICE int32_t AtomicAdd(int32_t* to, int32_t value) { return atomicAdd(to, value); }

// Four neighbours, aligned to 16 bytes. The kernels do not read what they add to, so that loads may
// move across it.
TF_DEFORMABLE_DEVICE void AtomicAdd4(float* to, const float (&values)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "f"(values[0]),
               "f"(values[1]), "f"(values[2]), "f"(values[3]));
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, values[i]);
#endif
}

// --- Numbers -------------------------------------------------------------------------------------

TF_DEFORMABLE_DEVICE float ToCompute(float v) { return v; }
TF_DEFORMABLE_DEVICE double ToCompute(double v) { return v; }
TF_DEFORMABLE_DEVICE float ToCompute(Half v) { return __half2float(__ushort_as_half(v.bits)); }
TF_DEFORMABLE_DEVICE float ToCompute(BFloat16 v) {
  return __uint_as_float(static_cast<uint32_t>(v.bits) << 16);
}

template <typename T>
TF_DEFORMABLE_DEVICE T FromCompute(ComputeType<T> v);
template <>
TF_DEFORMABLE_DEVICE float FromCompute<float>(float v) {
  return v;
}
template <>
TF_DEFORMABLE_DEVICE double FromCompute<double>(double v) {
  return v;
}
template <>
TF_DEFORMABLE_DEVICE Half FromCompute<Half>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}
template <>
TF_DEFORMABLE_DEVICE BFloat16 FromCompute<BFloat16>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}

// Rounds to the 10 bits of mantissa that TF32 products read; infinities and NaN stay.
TF_DEFORMABLE_DEVICE uint32_t ToTensorFloat32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(v));
  return bits;
}

TF_DEFORMABLE_DEVICE float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }
TF_DEFORMABLE_DEVICE uint32_t FloatToBits(float v) { return __float_as_uint(v); }

// --- Tensor cores --------------------------------------------------------------------------------

// Four matrices of 8 rows of 16 bytes. Lane i names row i % 8 of matrix i / 8; of each matrix it
// gets the (i % 4)-th 4 bytes of row i / 4.
TF_DEFORMABLE_DEVICE void LoadMatrices(const void* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
// The same, each matrix transposed (elements of 16 bits): the lane gets rows 2 * (i % 4) and the
// next of column i / 4.
TF_DEFORMABLE_DEVICE void LoadMatricesTransposed(const void* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// d += a * b for a warp: d [16, 8], a [16, 32 bytes], b [32 bytes, 8], in the fragment layouts of
// PTX: mma.m16n8k16 for 16-bit types, mma.m16n8k8 for float as TF32.
template <typename T>
TF_DEFORMABLE_DEVICE void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]);
template <>
TF_DEFORMABLE_DEVICE void MultiplyAdd<Half>(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
TF_DEFORMABLE_DEVICE void MultiplyAdd<BFloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
TF_DEFORMABLE_DEVICE void MultiplyAdd<float>(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- Launching -----------------------------------------------------------------------------------

// What a call of CUDA says, on behalf of the operator of that name. CUDA forgets the error, if the
// device can go on: it is not to be found again by whoever asks next.
inline Status ToStatus(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return Status();
  cudaGetLastError();
  const auto code =
      error == cudaErrorMemoryAllocation ? Status::Code::kOutOfMemory : Status::Code::kDeviceFailed;
  std::string message = std::string(op) + ": CUDA failed: " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    message += "; the kernels need compute capability 8.0 or later, one they were compiled for";
  }
  if (error == cudaErrorInsufficientDriver) {
    message += "; the kernels were compiled with CUDA " + std::to_string(CUDART_VERSION / 1000) +
               "." + std::to_string(CUDART_VERSION % 1000 / 10);
  }
  return Status(code, message);
}

#if defined(TF_DEFORMABLE_OBSERVE_LAUNCHES)
// Of a test, which wants to know which kernels it has reached.
void ObserveLaunch(const void* kernel);
#endif

// `blocks` up to 2^31 - 1; no blocks: no launch.
template <typename... Parameters>
[[nodiscard]] Status Launch(const char* op, void (*kernel)(Parameters...), int64_t blocks,
                            int threads, int64_t shared_bytes, void* stream,
                            const Parameters&... parameters) {
  if (blocks == 0) return Status();
  const void* const function = reinterpret_cast<const void*>(kernel);
#if defined(TF_DEFORMABLE_OBSERVE_LAUNCHES)
  ObserveLaunch(function);
#endif
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  if (error == cudaSuccess) {
    void* arguments[] = {const_cast<void*>(static_cast<const void*>(&parameters))...};
    error = cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(threads),
                             arguments, shared_bytes, static_cast<cudaStream_t>(stream));
  }
  return ToStatus(op, error);
}

[[nodiscard]] inline Status FillZeros(const char* op, void* memory, int64_t bytes, void* stream) {
  if (bytes == 0) return Status();
  return ToStatus(op, cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CUDA_EMULATION
#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_PRIMITIVES_H_
