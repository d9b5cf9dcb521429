// What the CPU drivers of all operators share: choice of kernels, workspace layout, parallel loops.
#ifndef TF_DEFORMABLE_CC_KERNELS_CPU_DRIVER_H_
#define TF_DEFORMABLE_CC_KERNELS_CPU_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/base/executor.h"
#include "kernels/base/integers.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernel_table.h"

namespace tf_deformable {

// The tables of one operator, in the order of CpuIsa.
#if defined(__x86_64__)
#define TF_DEFORMABLE_KERNEL_TABLES(name) {&baseline::name, &avx2::name, &avx512::name}
#else
#define TF_DEFORMABLE_KERNEL_TABLES(name) {&baseline::name}
#endif

template <typename T, template <typename> class Kernels, std::size_t kTables>
const Kernels<T>& SelectedKernels(const KernelTable<Kernels>* const (&tables)[kTables]) {
  const KernelTable<Kernels>& table = *tables[static_cast<int>(SelectedCpuIsa())];
  if constexpr (std::is_same_v<T, float>) return table.of_float;
  if constexpr (std::is_same_v<T, double>) return table.of_double;
  if constexpr (std::is_same_v<T, Half>) return table.of_half;
  if constexpr (std::is_same_v<T, BFloat16>) return table.of_bfloat16;
}

// Gradients of 16 bits are summed in float32 and rounded once. These sums are held of so many bytes
// of a tensor at a time, or of as much as one unit, or all threads, need.
inline constexpr int64_t kRoundedBytes = 4 << 20;

inline constexpr int64_t kWorkspaceAlignment = 64;  // bytes: a cache line, the widest vector

// Lays out arrays one after the other, each aligned; positions are in elements of A.
template <typename A>
class Layout {
 public:
  template <typename Element = A>
  int64_t Add(int64_t elements) {
    return AddBytes(elements * static_cast<int64_t>(sizeof(Element)));
  }
  int64_t AddBytes(int64_t bytes) {
    const int64_t at = size_;
    size_ += RoundUp(bytes, kWorkspaceAlignment) / static_cast<int64_t>(sizeof(A));
    return at;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// Runs function(unit, worker) through the executor's plain function pointer.
template <typename F>
void ForEach(Executor& executor, int64_t units, int64_t operations, const F& function) {
  if (units == 0) return;
  executor.Run(
      units, operations,
      [](const void* context, int64_t unit, int worker) {
        (*static_cast<const F*>(context))(unit, worker);
      },
      &function);
}

// Calls function(first, count) for the pieces of `size` elements, to clear, add up or round them.
inline constexpr int64_t kPieceElements = 1 << 16;
template <typename F>
void ForEachPiece(Executor& executor, int64_t size, const F& function) {
  ForEach(executor, CeilDiv(size, kPieceElements), kPieceElements, [&](int64_t unit, int) {
    const int64_t first = unit * kPieceElements;
    function(first, Min(size - first, kPieceElements));
  });
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CPU_DRIVER_H_
