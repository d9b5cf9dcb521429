// What the CUDA kernels are cut for. No header of CUDA is included.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_DEVICE_LIMITS_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_DEVICE_LIMITS_H_

namespace tf_deformable {
namespace cuda {

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;  // the most that a block may ask for
  int shared_bytes_per_multiprocessor = 0;
  bool has_warpgroup_products = false;  // the kernels of cuda/warpgroup.h run on it

  // The most that a block may ask for that shares its multiprocessor with another one; the device
  // takes 1 KiB of each.
  int shared_bytes_for_two() const { return shared_bytes_per_multiprocessor / 2 - 1024; }
};

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_DEVICE_LIMITS_H_
