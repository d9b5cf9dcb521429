// What the CUDA kernels are cut for. No header of CUDA is included.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_DEVICE_LIMITS_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_DEVICE_LIMITS_H_

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/options.h"

namespace tf_deformable {
namespace cuda {

// Kernels count in 32 bits what there are at most so many of: two such numbers can be added.
inline constexpr int64_t kMostIndex = 1 << 30;

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;  // the most that a block may ask for
  int shared_bytes_per_multiprocessor = 0;
  bool has_warpgroup_products = false;  // the kernels of cuda/warpgroup.h run on it

  // The most that a block may ask for that shares its multiprocessor with another one; the device
  // takes 1 KiB of each.
  int shared_bytes_for_two() const { return shared_bytes_per_multiprocessor / 2 - 1024; }
};

// Those of the current device, or as the options say.
[[nodiscard]] Status GetDeviceLimits(const char* op, const CudaOptions& options,
                                     DeviceLimits* limits);

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_DEVICE_LIMITS_H_
