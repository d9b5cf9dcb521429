// What the caller of a CUDA kernel decides.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_OPTIONS_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_OPTIONS_H_

namespace tf_deformable {

struct CudaOptions {
  // Products of float read 10 bits of mantissa (TF32), on the tensor cores; sums are float.
  bool tensor_float_32 = true;
  // The same bits in every run, on the same device.
  bool deterministic = false;
  // For tests and measurements, which have to reach what a plan chooses by the size of the device;
  // 0: as the device has it, as is estimated to be fastest.
  bool warpgroup_products = true;  // to use them where the device has them
  int multiprocessors = 0;
  int columns_bytes = 0;  // of a step of the gradient of a convolution's inputs
  int forward_tile_rows = 0, forward_tile_columns = 0;  // where the tile is a choice
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_OPTIONS_H_
