// Choice of the instruction set of the CPU kernels at run time.
#ifndef TF_DEFORMABLE_CC_KERNELS_CPU_ISA_H_
#define TF_DEFORMABLE_CC_KERNELS_CPU_ISA_H_

namespace tf_deformable {

enum class CpuIsa { kBaseline, kAvx2, kAvx512 };

// The widest instruction set that this processor and this build support; the environment variable
// TF_DEFORMABLE_CPU_ISA ("baseline", "avx2", "avx512") asks for a narrower one. Decided once.
CpuIsa SelectedCpuIsa();

const char* ToString(CpuIsa isa);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CPU_ISA_H_
