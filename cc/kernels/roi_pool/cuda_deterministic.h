// CUDA kernel of the gradient for the inputs of RoI pooling, with the same bits in every run.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DETERMINISTIC_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DETERMINISTIC_H_

#include <cstdint>

#include "kernels/roi_pool/bins.h"
#include "kernels/roi_pool/cuda_class_bins.h"

namespace tf_deformable::roi_pool::cuda {

// The weight of all samples of a class bin; NaN if there is none to be read.
template <typename A>
TF_DEFORMABLE_DEVICE A ScaleOfSamples(const Geometry& g, const BinSamples<A>& samples_y,
                                      const BinSamples<A>& samples_x, ClassBinAxis<A> y,
                                      ClassBinAxis<A> x) {
  // Samples are counted before any is added.
  y.samples = samples_y.count;
  x.samples = samples_x.count;
  if (!g.aligned) {
    A position;
    for (int64_t s = 0; s < g.samples_per_bin; ++s) {
      if (samples_y.Position(s, &position)) y.samples += 1;
      if (samples_x.Position(s, &position)) x.samples += 1;
    }
  }
  return ScaleOf(y, x);
}

// Adds the gradient of a sample, `upstream`, to the pixels around it, of one channel of a map.
template <typename A>
TF_DEFORMABLE_DEVICE void AddSample(const Geometry& g, A y, A x, A upstream, A* channel) {
  const PixelPair<A, int32_t> cy = MakePixelPair<int32_t>(y);
  const PixelPair<A, int32_t> cx = MakePixelPair<int32_t>(x);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const A wy = corner < 2 ? 1 - cy.fraction : cy.fraction;
    const A wx = corner % 2 == 0 ? 1 - cx.fraction : cx.fraction;
    if ((corner >= 2 && cy.fraction == 0) || (corner % 2 != 0 && cx.fraction == 0)) continue;
    const int64_t at = (cy.low + corner / 2) * g.width + cx.low + corner % 2;
    AtomicAdd(channel + at * g.channels, wy * wx * upstream);
  }
}

// The gradient for the inputs with one thread to each channel of an image, which adds all that is
// added to it: the device keeps the order of what one thread adds to one element.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void DeterministicInputsKernel(Job job, BackwardTensors<T> tensors, ComputeType<T>* grad_inputs) {
  using A = ComputeType<T>;
  const Geometry& g = job.geometry;
  const int64_t thread = BlockIndex() * kThreads + ThreadIndex();
  const int64_t image = job.first_image + thread / g.channels;
  if (image >= job.last_image) return;
  const int32_t channel = static_cast<int32_t>(thread % g.channels);
  const int32_t map = channel / static_cast<int32_t>(g.depth);
  const int32_t d = channel % static_cast<int32_t>(g.depth);
  const int32_t cls = d / static_cast<int32_t>(g.class_depth());
  A* const target =
      grad_inputs + (image - job.first_image) * g.height * g.width * g.channels + channel;
  for (int64_t box = 0; box < g.boxes; ++box) {
    if (tensors.box_indices[box] != image) continue;
    for (int64_t bin = 0; bin < g.bins(); ++bin) {
      const int64_t index = (box * g.bins() + bin) * g.classes + cls;
      const ClassBin u = MakeClassBin<T>(job, tensors, index);
      if (!u.finite) break;  // nor are the other bins
      if (MapOfBin(g, u.i, u.j) != map) continue;
      ClassBinAxis<A> y, x;
      const BinSamples<A> samples_y = SamplesOf<T>(g, tensors, u, 0, &y);
      const BinSamples<A> samples_x = SamplesOf<T>(g, tensors, u, 1, &x);
      const A scale = ScaleOfSamples(g, samples_y, samples_x, y, x);
      if (scale != scale || g.height == 0 || g.width == 0) continue;
      const A mask = tensors.mask ? LoadSampling(tensors.mask, index / g.classes) : A{1};
      const A upstream =
          ToCompute(tensors.grad_output[(box * g.bins() + bin) * g.depth + d]) * scale * mask;
      for (int64_t sy = samples_y.first; sy < samples_y.last; ++sy) {
        A position_y, position_x;
        if (!samples_y.Position(sy, &position_y)) continue;
        for (int64_t sx = samples_x.first; sx < samples_x.last; ++sx) {
          if (!samples_x.Position(sx, &position_x)) continue;
          AddSample(g, position_y, position_x, upstream, target);
        }
      }
    }
  }
}

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_DETERMINISTIC_H_
