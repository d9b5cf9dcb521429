#include "kernels/cpu/isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace tf_deformable {
namespace {

CpuIsa WidestCpuIsa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return CpuIsa::kAvx512;
  }
  if (avx2) return CpuIsa::kAvx2;
#endif
  return CpuIsa::kBaseline;
}

CpuIsa Select() {
  const CpuIsa widest = WidestCpuIsa();
  const char* wanted = std::getenv("TF_DEFORMABLE_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return widest;
  for (CpuIsa isa : {CpuIsa::kBaseline, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (std::strcmp(wanted, ToString(isa)) == 0 && isa <= widest) return isa;
  }
  std::fprintf(
      stderr,
      "tf_deformable: TF_DEFORMABLE_CPU_ISA must be baseline, avx2 or avx512 and supported "
      "by this processor, got %s; using %s\n",
      wanted, ToString(widest));
  return widest;
}

}  // namespace

CpuIsa SelectedCpuIsa() {
  static const CpuIsa isa = Select();
  return isa;
}

const char* ToString(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kBaseline:
      return "baseline";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
  }
  return "";
}

}  // namespace tf_deformable
