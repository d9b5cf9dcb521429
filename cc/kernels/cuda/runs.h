// How the channels of a unit of work are shared out over the threads of a warp.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_RUNS_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_RUNS_H_

#include <cstdint>
#include <initializer_list>

namespace tf_deformable {
namespace cuda {

// The least power of 2 that is enough for so many runs of channels, at most a warp.
inline int32_t ChooseLanes(int64_t runs) {
  int32_t lanes = 1;
  while (lanes < 32 && lanes < runs) lanes *= 2;
  return lanes;
}

// Whether `channels` neighbours are whole runs of `run`, and all tensors begin as 16 bytes do.
inline bool HasWholeRuns(int64_t channels, int run, std::initializer_list<const void*> tensors) {
  for (const void* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return false;
  }
  return channels % run == 0;
}

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_RUNS_H_
