// What the CPU driver (cpu_plan.cc) and the kernels compiled once per instruction set
// (cpu_kernels.inc) agree on: plain data and function pointers, no inline code.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_KERNELS_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_KERNELS_H_

#include <cstdint>

#include "kernels/base/float_types.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/roi_pool/bins.h"
#include "kernels/roi_pool/geometry.h"
#include "kernels/roi_pool/tensors.h"

namespace tf_deformable::roi_pool::cpu {

template <typename T>
struct ForwardJob {
  Geometry geometry;
  ForwardTensors<T> tensors;
  int64_t axis_capacity;  // the workspace has room for so many lines of an axis
};

template <typename T>
struct BackwardJob {
  using A = ComputeType<T>;
  Geometry geometry;
  BackwardTensors<T> tensors;
  // The images whose boxes are read, and their gradients [images, H, W, C]: those of the tensors,
  // unless they have to be rounded.
  int64_t first_image, last_image;
  A* grad_inputs;
  // A unit owns the input gradient of one map's channels of a channel block. A block has whole
  // classes, classes_per_block of them, or one of the `slices` of a class, channels_per_block wide.
  int64_t blocks, slices;
  int64_t classes_per_block, channels_per_block;
  int64_t first_box, last_box;  // of the step, those of other images included
  // Gradients of (dy, dx, mask) of each bin and class: [slices, boxes, bins, classes, 3]; null if
  // there are neither offsets nor a mask.
  A* partials;
  int64_t axis_capacity;
};

template <typename T>
struct Kernels {
  using A = ComputeType<T>;
  // Units of work; each writes memory of its own.
  void (*forward)(const ForwardJob<T>& job, int64_t box, AxisLine<A>* workspace);
  void (*backward)(const BackwardJob<T>& job, int64_t unit, AxisLine<A>* workspace);
  void (*reduce_partials)(const BackwardJob<T>& job, int64_t box);
  void (*round)(const A* from, int64_t size, T* to);

  int64_t lanes;
};

TF_DEFORMABLE_DECLARE_KERNEL_TABLES(Kernels, kKernels)

}  // namespace tf_deformable::roi_pool::cpu

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CPU_KERNELS_H_
