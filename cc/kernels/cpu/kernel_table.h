// The kernels of one operator, for every element type, in every instruction set.
#ifndef TF_DEFORMABLE_CC_KERNELS_CPU_KERNEL_TABLE_H_
#define TF_DEFORMABLE_CC_KERNELS_CPU_KERNEL_TABLE_H_

#include "kernels/base/float_types.h"

namespace tf_deformable {

// Kernels<T>: function pointers and block sizes. Defined once per instruction set, each in a
// translation unit compiled for it; the driver picks (see SelectedKernels in driver.h).
template <template <typename> class Kernels>
struct KernelTable {
  Kernels<float> of_float;
  Kernels<double> of_double;
  Kernels<Half> of_half;
  Kernels<BFloat16> of_bfloat16;
};

// Declares namespace::name for each instruction set.
#define TF_DEFORMABLE_DECLARE_KERNEL_TABLES(Kernels, name) \
  namespace baseline {                                     \
  extern const KernelTable<Kernels> name;                  \
  }                                                        \
  namespace avx2 {                                         \
  extern const KernelTable<Kernels> name;                  \
  }                                                        \
  namespace avx512 {                                       \
  extern const KernelTable<Kernels> name;                  \
  }

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CPU_KERNEL_TABLE_H_
