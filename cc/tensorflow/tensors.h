// TensorFlow's tensors and shapes as the kernels' own types.
#ifndef TF_DEFORMABLE_CC_TENSORFLOW_TENSORS_H_
#define TF_DEFORMABLE_CC_TENSORFLOW_TENSORS_H_

#include <vector>

#include "deformable/float_types.h"
#include "deformable/shape.h"
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

template <typename S>
const S* Data(const tensorflow::Tensor& tensor) {
  return static_cast<const S*>(tensor.data());
}
template <typename S>
S* MutableData(tensorflow::Tensor* tensor) {
  return static_cast<S*>(tensor->data());
}

inline Shape ToShape(const tensorflow::TensorShape& shape) {
  const auto dims = shape.dim_sizes();
  return Shape(std::vector<int64_t>(dims.begin(), dims.end()));
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
    tensorflow::shape_inference::InferenceContext* c, const std::vector<int64_t>& dims) {
  std::vector<tensorflow::shape_inference::DimensionHandle> handles;
  for (int64_t dim : dims) {
    handles.push_back(dim == kUnknown ? c->UnknownDim() : c->MakeDim(dim));
  }
  return c->MakeShape(handles);
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_TENSORFLOW_TENSORS_H_
