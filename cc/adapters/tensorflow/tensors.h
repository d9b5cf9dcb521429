// TensorFlow's tensors and shapes as the kernels' own types.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TENSORS_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TENSORS_H_

#include <vector>

#include "adapters/common/element_type.h"
#include "adapters/common/tensor_view.h"
#include "kernels/base/float_types.h"
#include "kernels/base/shape.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.h"

namespace tf_deformable {

template <typename T>
struct StorageOf {
  using type = T;
};
template <>
struct StorageOf<Eigen::half> {
  using type = Half;
};
template <>
struct StorageOf<Eigen::bfloat16> {
  using type = BFloat16;
};
template <typename T>
using StorageType = typename StorageOf<T>::type;

inline ElementType ToElementType(tensorflow::DataType type) {
  switch (type) {
    case tensorflow::DT_HALF:
      return ElementType::kHalf;
    case tensorflow::DT_BFLOAT16:
      return ElementType::kBFloat16;
    case tensorflow::DT_FLOAT:
      return ElementType::kFloat;
    case tensorflow::DT_DOUBLE:
      return ElementType::kDouble;
    case tensorflow::DT_INT32:
      return ElementType::kInt32;
    default:
      return ElementType::kOther;
  }
}

inline Shape ToShape(const tensorflow::TensorShape& shape) {
  const auto dims = shape.dim_sizes();
  return Shape(std::vector<int64_t>(dims.begin(), dims.end()));
}

inline TensorView View(const tensorflow::Tensor& tensor) {
  return {ToElementType(tensor.dtype()), ToShape(tensor.shape()), tensor.data()};
}

inline Shape ToShape(tensorflow::shape_inference::InferenceContext* c,
                     tensorflow::shape_inference::ShapeHandle handle) {
  if (!c->RankKnown(handle)) return Shape();
  std::vector<int64_t> dims(c->Rank(handle));
  for (int i = 0; i < c->Rank(handle); ++i) {
    const auto dim = c->Dim(handle, i);
    dims[i] = c->ValueKnown(dim) ? c->Value(dim) : kUnknown;
  }
  return Shape(std::move(dims));
}

inline tensorflow::shape_inference::ShapeHandle ToHandle(
    tensorflow::shape_inference::InferenceContext* c, const Shape& shape) {
  if (!shape.known_rank) return c->UnknownShape();
  std::vector<tensorflow::shape_inference::DimensionHandle> handles;
  for (int64_t dim : shape.dims) {
    handles.push_back(dim == kUnknown ? c->UnknownDim() : c->MakeDim(dim));
  }
  return c->MakeShape(handles);
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TENSORS_H_
