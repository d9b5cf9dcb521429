// Products of Hopper's tensor cores: a warpgroup, four warps that begin at a multiple of four,
// multiplies tiles that are in shared memory, while its threads go on. They exist in code for
// compute capability 9.0a alone.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_WARPGROUP_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_WARPGROUP_H_

#include <cstdint>

#include "kernels/cuda/primitives.h"
#include "kernels/cuda/product.h"

// The emulation has its own.
#if !defined(TF_DEFORMABLE_CUDA_EMULATION)

namespace tf_deformable {
namespace cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWarpgroupProducts = true;
#else
inline constexpr bool kHasWarpgroupProducts = false;
#endif

// A tile of rows of 128 bytes, one after the other from a multiple of 1024 bytes on. In each, the
// 16 bytes number i are at place i ^ (row % 8): what PTX calls the 128-byte swizzle.
class SwizzledTile {
 public:
  TF_DEFORMABLE_DEVICE explicit SwizzledTile(const void* tile)
      : bits_(static_cast<uint64_t>((SharedAddress(tile) & 0x3ffff) >> 4) | uint64_t{1} << 16 |
              uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62) {}
  // The descriptor of the 32 bytes of each row that a depth step multiplies, one of four.
  TF_DEFORMABLE_DEVICE uint64_t Columns(int step) const { return bits_ + 2 * step; }

 private:
  uint64_t bits_;
};

// Other code has the names alone.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TF_DEFORMABLE_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define TF_DEFORMABLE_HOPPER_ASM(...)
#endif

// Makes what the thread has written to shared memory, and copies it has waited for, visible to
// products that are issued after the next barrier.
TF_DEFORMABLE_DEVICE void ShowToWarpgroups() {
  TF_DEFORMABLE_HOPPER_ASM("fence.proxy.async.shared::cta;\n" :: : "memory");
}
// Before the first product that adds to sums which the threads have touched.
TF_DEFORMABLE_DEVICE void BeginWarpgroupProducts() {
  TF_DEFORMABLE_HOPPER_ASM("wgmma.fence.sync.aligned;\n" :: : "memory");
}
TF_DEFORMABLE_DEVICE void CommitWarpgroupProducts() {
  TF_DEFORMABLE_HOPPER_ASM("wgmma.commit_group.sync.aligned;\n" :: : "memory");
}
// Waits for the warpgroup's products, but for those of the last kPending commits.
template <int kPending>
TF_DEFORMABLE_DEVICE void WaitForWarpgroupProducts() {
  TF_DEFORMABLE_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// d += a * b for a warpgroup: a [64, 32 bytes], b [kColumns, 32 bytes], by their descriptors; d
// [64, kColumns], of which warp i has rows 16 * i and on, every 8 columns as MultiplyAdd has them.
template <typename T, int kColumns>
struct WarpgroupMultiplyAdd;

#define TF_DEFORMABLE_SUMS_8(i)                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define TF_DEFORMABLE_SUMS_32(i)                                                      \
  TF_DEFORMABLE_SUMS_8(i), TF_DEFORMABLE_SUMS_8(i + 8), TF_DEFORMABLE_SUMS_8(i + 16), \
      TF_DEFORMABLE_SUMS_8(i + 24)
#define TF_DEFORMABLE_NAMES_64                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TF_DEFORMABLE_NAMES_128                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define TF_DEFORMABLE_NAMES_256                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, " \
  "%74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, " \
  "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "   \
  "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, " \
  "%123, %124, %125, %126, %127"

#define TF_DEFORMABLE_PRODUCT_64(T, depth_and_types, transposed)                             \
  template <>                                                                                \
  struct WarpgroupMultiplyAdd<T, 64> {                                                       \
    static TF_DEFORMABLE_DEVICE void Run(float (&d)[32], uint64_t a, uint64_t b) {           \
      TF_DEFORMABLE_HOPPER_ASM(                                                              \
          "{\n.reg .pred adds;\nsetp.ne.b32 adds, %34, 0;\n"                                 \
          "wgmma.mma_async.sync.aligned.m64n64" depth_and_types " {" TF_DEFORMABLE_NAMES_64  \
          "}, %32, %33, adds, 1, 1" transposed ";\n}\n" : TF_DEFORMABLE_SUMS_32(0) : "l"(a), \
          "l"(b), "r"(1));                                                                   \
    }                                                                                        \
  };

#define TF_DEFORMABLE_PRODUCT_128(T, depth_and_types, transposed)                             \
  template <>                                                                                 \
  struct WarpgroupMultiplyAdd<T, 128> {                                                       \
    static TF_DEFORMABLE_DEVICE void Run(float (&d)[64], uint64_t a, uint64_t b) {            \
      TF_DEFORMABLE_HOPPER_ASM(                                                               \
          "{\n.reg .pred adds;\nsetp.ne.b32 adds, %66, 0;\n"                                  \
          "wgmma.mma_async.sync.aligned.m64n128" depth_and_types " {" TF_DEFORMABLE_NAMES_128 \
          "}, %64, %65, adds, 1, 1" transposed ";\n}\n" : TF_DEFORMABLE_SUMS_32(0),           \
          TF_DEFORMABLE_SUMS_32(32) : "l"(a), "l"(b), "r"(1));                                \
    }                                                                                         \
  };

#define TF_DEFORMABLE_PRODUCT_256(T, depth_and_types, transposed)                             \
  template <>                                                                                 \
  struct WarpgroupMultiplyAdd<T, 256> {                                                       \
    static TF_DEFORMABLE_DEVICE void Run(float (&d)[128], uint64_t a, uint64_t b) {           \
      TF_DEFORMABLE_HOPPER_ASM(                                                               \
          "{\n.reg .pred adds;\nsetp.ne.b32 adds, %130, 0;\n"                                 \
          "wgmma.mma_async.sync.aligned.m64n256" depth_and_types " {" TF_DEFORMABLE_NAMES_256 \
          "}, %128, %129, adds, 1, 1" transposed ";\n}\n" : TF_DEFORMABLE_SUMS_32(0),         \
          TF_DEFORMABLE_SUMS_32(32), TF_DEFORMABLE_SUMS_32(64),                               \
          TF_DEFORMABLE_SUMS_32(96) : "l"(a), "l"(b), "r"(1));                                \
    }                                                                                         \
  };

#define TF_DEFORMABLE_PRODUCTS(T, depth_and_types, transposed) \
  TF_DEFORMABLE_PRODUCT_64(T, depth_and_types, transposed)     \
  TF_DEFORMABLE_PRODUCT_128(T, depth_and_types, transposed)    \
  TF_DEFORMABLE_PRODUCT_256(T, depth_and_types, transposed)

TF_DEFORMABLE_PRODUCTS(float, "k8.f32.tf32.tf32", "")
TF_DEFORMABLE_PRODUCTS(Half, "k16.f32.f16.f16", ", 0, 0")
TF_DEFORMABLE_PRODUCTS(BFloat16, "k16.f32.bf16.bf16", ", 0, 0")

#undef TF_DEFORMABLE_SUMS_8
#undef TF_DEFORMABLE_SUMS_32
#undef TF_DEFORMABLE_NAMES_64
#undef TF_DEFORMABLE_NAMES_128
#undef TF_DEFORMABLE_NAMES_256
#undef TF_DEFORMABLE_PRODUCT_64
#undef TF_DEFORMABLE_PRODUCT_128
#undef TF_DEFORMABLE_PRODUCT_256
#undef TF_DEFORMABLE_PRODUCTS
#undef TF_DEFORMABLE_HOPPER_ASM

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CUDA_EMULATION

namespace tf_deformable {
namespace cuda {

inline constexpr int kSwizzledRow = 128;  // bytes of a row of a SwizzledTile

// Where 16 bytes of a row, number `vector`, are in a SwizzledTile, in bytes.
TF_DEFORMABLE_DEVICE int SwizzledPlace(int row, int vector) {
  return row * kSwizzledRow + (vector ^ (row & 7)) * 16;
}

// What a warpgroup computes of a product: 64 rows and kColumns columns, which are interleaved
// (see Interleaved in product.h). To be used from the kernels of kHasWarpgroupProducts.
template <typename T, int kColumns>
class WarpgroupProduct {
 public:
  static constexpr int kRows = 64;

  TF_DEFORMABLE_DEVICE void Clear() {
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) sums_[i] = 0;
  }

  // Issues the product of 128 bytes of depth: a has 64 rows, b kColumns. Both stay as they are, and
  // the sums untouched, until the products have been waited for.
  TF_DEFORMABLE_DEVICE void Issue(const void* a, const void* b) {
    const SwizzledTile a_tile(a), b_tile(b);
    BeginWarpgroupProducts();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      WarpgroupMultiplyAdd<T, kColumns>::Run(sums_, a_tile.Columns(step), b_tile.Columns(step));
    }
    CommitWarpgroupProducts();
  }

  // Calls f(row, column, sums) for the thread's runs of kInterleavedRun columns.
  template <typename F>
  TF_DEFORMABLE_DEVICE void ForEachInterleavedRun(const F& f) const {
    const int lane = ThreadIndex() % 32, warp = ThreadIndex() / 32 % 4;
#pragma unroll
    for (int q = 0; q < kColumns / kInterleavedColumns; ++q) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sums[kInterleavedRun];
#pragma unroll
        for (int k = 0; k < kInterleavedRun; ++k) {
          sums[k] = sums_[(q * 4 + k / 2) * 4 + half * 2 + k % 2];
        }
        f(warp * 16 + half * 8 + lane / 4, q * kInterleavedColumns + lane % 4 * kInterleavedRun,
          sums);
      }
    }
  }

 private:
  float sums_[kColumns / 2];
};

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_WARPGROUP_H_
