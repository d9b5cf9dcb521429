// The operators and their gradients as loops over samples: what the kernels' results are compared
// with. Where a sample lies is computed as the kernels compute it, by the scalar rules
// (kernels/sampling/bilinear.h, kernels/roi_pool/bins.h) in the type that they compute in; sums are
// in double, and each knows how large the numbers were that it adds up.
#ifndef TF_DEFORMABLE_TESTS_NATIVE_SCALAR_OPERATORS_H_
#define TF_DEFORMABLE_TESTS_NATIVE_SCALAR_OPERATORS_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/deformable_attention/geometry.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "kernels/roi_pool/geometry.h"

namespace tf_deformable::scalar {

// A sum, and the sum of the sizes of its terms, to which its rounding errors are proportional.
struct Sum {
  double value = 0, size = 0;

  void Add(double term) { Add(term, std::fabs(term)); }
  void Add(double term, double term_size) {
    value += term;
    size += term_size;
  }
  void Add(double factor, const Sum& sum) {
    value += factor * sum.value;
    size += std::fabs(factor) * sum.size;
  }
};

using Numbers = std::vector<double>;
using Sums = std::vector<Sum>;

// Tensors are given as the kernels' are laid out (tensors.h of each operator); one that is absent
// is empty, and so are its gradients. A is ComputeType of the kernels' elements.

struct Convolution {
  Sums output, grad_inputs, grad_filters, grad_offsets, grad_mask;
};
template <typename A>
Convolution Convolve(const deformable_conv2d::Geometry& geometry, const Numbers& inputs,
                     const Numbers& filters, const Numbers& offsets, const Numbers& mask,
                     const Numbers& bias, const Numbers& grad_output);

struct Branch {
  Sums offsets, mask;
};
Branch PredictOffsets(const deformable_conv2d::Geometry& geometry, const Numbers& inputs,
                      const Numbers& filters, const Numbers& bias, double largest_mask,
                      bool has_mask);

struct BranchGradients {
  Sums grad_inputs, grad_filters, grad_bias;
};
BranchGradients PredictOffsetsGradients(const deformable_conv2d::Geometry& geometry,
                                        const Numbers& inputs, const Numbers& filters,
                                        const Numbers& mask, double largest_mask,
                                        const Numbers& grad_offsets, const Numbers& grad_mask);

struct RoIPooling {
  Sums output, grad_inputs, grad_offsets, grad_mask;
  // A rounding decides whether a sample counts, or on which side of a pixel it lies: the
  // processor's, which may fuse a product with a sum. The results say nothing then.
  bool rounding_decides = false;
};
template <typename A>
RoIPooling PoolRoIs(const roi_pool::Geometry& geometry, const Numbers& inputs,
                    const std::vector<A>& boxes, const int32_t* box_indices, const Numbers& offsets,
                    const Numbers& mask, const Numbers& grad_output);

struct Attention {
  Sums output, grad_value, grad_locations, grad_weights;
};
template <typename A>
Attention Attend(const deformable_attention::Geometry& geometry, const Numbers& value,
                 const Numbers& locations, const Numbers& weights, const Numbers& grad_output);

}  // namespace tf_deformable::scalar

#endif  // TF_DEFORMABLE_TESTS_NATIVE_SCALAR_OPERATORS_H_
