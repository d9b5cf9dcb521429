// A tensor of any framework, as the calls of operators read it.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_TENSOR_VIEW_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_TENSOR_VIEW_H_

#include <vector>

#include "adapters/common/element_type.h"
#include "kernels/base/shape.h"
#include "kernels/sampling/sampling_tensor.h"

namespace tf_deformable {

struct TensorView {
  ElementType type = ElementType::kOther;
  Shape shape;
  // Null where only types and shapes are asked for. What an operator reads is never written.
  void* data = nullptr;

  template <typename S>
  S* Data() const {
    return static_cast<S*>(data);
  }

  // Of offsets, a mask or a gradient for one of them, beside features of type S.
  template <typename S>
  SamplingTensor<S> SamplingData() const {
    using A = ComputeType<S>;
    if (type == ElementTypeOf<A>::value) return Data<A>();
    return Data<S>();
  }
  template <typename S>
  SamplingTensor<const S> ConstSamplingData() const {
    using A = ComputeType<S>;
    if (type == ElementTypeOf<A>::value) return Data<const A>();
    return Data<const S>();
  }
};

std::vector<ElementType> TypesOf(const std::vector<TensorView>& views);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_TENSOR_VIEW_H_
