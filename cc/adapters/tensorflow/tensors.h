// TensorFlow's tensors and shapes as the kernels' own types.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TENSORS_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TENSORS_H_

#include <string>
#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/base/shape.h"
#include "kernels/sampling/sampling_tensor.h"
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

// Offsets or a mask beside features of type S.
template <typename S>
SamplingTensor<const S> SamplingData(const tensorflow::Tensor& tensor) {
  if (tensor.dtype() == tensorflow::DataTypeToEnum<ComputeType<S>>::value) {
    return Data<ComputeType<S>>(tensor);
  }
  return Data<S>(tensor);
}
template <typename S>
SamplingTensor<S> MutableSamplingData(tensorflow::Tensor* tensor) {
  if (tensor->dtype() == tensorflow::DataTypeToEnum<ComputeType<S>>::value) {
    return MutableData<ComputeType<S>>(tensor);
  }
  return MutableData<S>(tensor);
}

// Checks an element type of offsets or of a mask beside features of type T.
template <typename T>
absl::Status CheckSamplingType(const char* op, tensorflow::DataType type) {
  const tensorflow::DataType features = tensorflow::DataTypeToEnum<T>::value;
  const tensorflow::DataType positions =
      tensorflow::DataTypeToEnum<ComputeType<StorageType<T>>>::value;
  if (type == features || type == positions) return absl::OkStatus();
  std::string allowed = tensorflow::DataTypeString(features);
  if (positions != features) allowed += " or " + tensorflow::DataTypeString(positions);
  return absl::InvalidArgumentError(
      std::string(op) + ": offsets and mask must have dtype " + allowed + " beside inputs of " +
      tensorflow::DataTypeString(features) + ", got " + tensorflow::DataTypeString(type));
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

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_TENSORS_H_
