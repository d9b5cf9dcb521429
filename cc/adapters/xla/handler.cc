#include "adapters/xla/handler.h"

namespace tf_deformable {
namespace {

ElementType ToElementType(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F16:
      return ElementType::kHalf;
    case ffi::DataType::BF16:
      return ElementType::kBFloat16;
    case ffi::DataType::F32:
      return ElementType::kFloat;
    case ffi::DataType::F64:
      return ElementType::kDouble;
    case ffi::DataType::S32:
      return ElementType::kInt32;
    default:
      return ElementType::kOther;
  }
}

TensorView ToView(const ffi::AnyBuffer& buffer) {
  const auto dims = buffer.dimensions();
  return {ToElementType(buffer.element_type()),
          Shape(std::vector<int64_t>(dims.begin(), dims.end())), buffer.untyped_data()};
}

Status ToStatus(const ffi::Error& error) {
  return Status(Status::Code::kInvalidArgument, error.message());
}

}  // namespace

Status HostElements::Read(const char* op, const char* name, const ffi::Dictionary& attributes,
                          TensorView* view) {
  if (!attributes.contains(name)) {
    return Invalid(op, std::string(name) +
                           " must be known when XLA compiles for a GPU, got what "
                           "the program computes");
  }
  std::vector<int64_t> values;
  const Status status = AttributeReader(op, attributes)(name, &values);
  if (!status.ok()) return status;
  int64_t size = 1;
  for (const int64_t dim : view->shape.dims) size *= dim;
  if (size != static_cast<int64_t>(values.size())) {
    return Invalid(op, std::string("the attribute ") + name + " must have " + std::to_string(size) +
                           " elements, got " + std::to_string(values.size()));
  }
  elements_.assign(values.begin(), values.end());
  view->data = elements_.data();
  return status;
}

ffi::Error ToFfiError(const Status& status) {
  switch (status.code()) {
    case Status::Code::kOk:
      return ffi::Error::Success();
    case Status::Code::kInvalidArgument:
    case Status::Code::kTooLarge:
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, status.message());
    case Status::Code::kOutOfMemory:
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, status.message());
    case Status::Code::kDeviceFailed:
      break;
  }
  return ffi::Error(ffi::ErrorCode::kInternal, status.message());
}

Status View(const ffi::RemainingArgs& operands, std::vector<TensorView>* views) {
  for (size_t i = 0; i < operands.size(); ++i) {
    const ffi::ErrorOr<ffi::AnyBuffer> buffer = operands.get<ffi::AnyBuffer>(i);
    if (buffer.has_error()) return ToStatus(buffer.error());
    views->push_back(ToView(*buffer));
  }
  return Status();
}

Status View(const ffi::RemainingRets& results, std::vector<TensorView>* views) {
  for (size_t i = 0; i < results.size(); ++i) {
    ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> buffer = results.get<ffi::AnyBuffer>(i);
    if (buffer.has_error()) return ToStatus(buffer.error());
    views->push_back(ToView(**buffer));
  }
  return Status();
}

Status Bind(const char* op, const std::vector<TensorView>& results,
            std::vector<TensorView>* outputs) {
  Status status = CheckCount(op, "results", results.size(), outputs->size());
  if (!status.ok()) return status;
  for (size_t i = 0; i < results.size(); ++i) {
    TensorView& output = (*outputs)[i];
    if (results[i].type != output.type || results[i].shape.dims != output.shape.dims) {
      return Invalid(op, "result " + std::to_string(i) + " must be " + ToString(output.type) +
                             ToString(output.shape) + ", got " + ToString(results[i].type) +
                             ToString(results[i].shape));
    }
    output.data = results[i].data;
  }
  return Status();
}

}  // namespace tf_deformable
