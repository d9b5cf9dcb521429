#include "adapters/tensorflow_xla/lowering.h"

#include <cstdio>
#include <cstring>

#include "tensorflow/core/platform/logging.h"
#include "xla/ffi/api/c_api.h"
#include "xla/shape_util.h"

// Declared by hand: the header of TensorFlow's that has it leads to headers that its wheel lacks.
namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();
}

namespace tf_deformable {
namespace {

xla::PrimitiveType ToPrimitiveType(ElementType type) {
  switch (type) {
    case ElementType::kHalf:
      return xla::F16;
    case ElementType::kBFloat16:
      return xla::BF16;
    case ElementType::kFloat:
      return xla::F32;
    case ElementType::kDouble:
      return xla::F64;
    case ElementType::kInt32:
      return xla::S32;
    case ElementType::kOther:
      break;
  }
  return xla::PRIMITIVE_TYPE_INVALID;
}

// Row by row, as the kernels read and write.
xla::Shape DenseShape(ElementType type, const Shape& shape) {
  return xla::ShapeUtil::MakeShapeWithDescendingLayout(ToPrimitiveType(type), shape.dims);
}

}  // namespace

Status AttributeWriter::operator()(const char* name, const int64_t* value) {
  return Add(name, std::to_string(*value) + " : i64");
}

// By its bits, since no decimal fraction would have to be the same number.
Status AttributeWriter::operator()(const char* name, const float* value) {
  uint32_t bits;
  std::memcpy(&bits, value, sizeof bits);
  char text[32];
  std::snprintf(text, sizeof text, "0x%08X : f32", bits);
  return Add(name, text);
}

Status AttributeWriter::operator()(const char* name, const bool* value) {
  return Add(name, *value ? "true" : "false");
}

Status AttributeWriter::operator()(const char* name, const std::string* value) {
  return Add(name, '"' + *value + '"');
}

Status AttributeWriter::operator()(const char* name, const std::vector<int64_t>* values) {
  std::string text = "array<i64";
  for (size_t i = 0; i < values->size(); ++i) {
    text += (i == 0 ? ": " : ", ") + std::to_string((*values)[i]);
  }
  return Add(name, text + ">");
}

Status AttributeWriter::Add(const char* name, const std::string& value) {
  text_ += (text_.empty() ? "" : ", ") + std::string(name) + " = " + value;
  return Status();
}

absl::Status StaticInput(tensorflow::XlaOpKernelContext* context, const char* op, const char* name,
                         int input, TensorView* view) {
  const auto shape = context->InputXlaShape(input);
  TF_RETURN_IF_ERROR(shape.status());
  if (!shape->is_static()) {
    // Where TensorFlow chose itself what to compile, it then runs the operator outside of that.
    return absl::UnimplementedError(
        std::string(op) + ": " + name +
        " must have a shape that is known when XLA compiles (jit_compile=True), got " +
        shape->ToString() + "; pad it, or call the operator outside of what XLA compiles");
  }
  const auto dims = shape->dimensions();
  *view = {ToElementType(context->input_type(input)),
           Shape(std::vector<int64_t>(dims.begin(), dims.end()))};
  return absl::OkStatus();
}

absl::Status HostInput(tensorflow::XlaOpKernelContext* context, const char* op, const char* name,
                       int input, bool operands_are_on_host, tensorflow::Tensor* constant,
                       TensorView* view) {
  const auto known = context->ConstantInputTensor(input);
  if (known.ok()) {
    *constant = *known;
    *view = View(*constant);
    return absl::OkStatus();
  }
  if (operands_are_on_host) return absl::OkStatus();
  return absl::UnimplementedError(
      std::string(op) + ": " + name +
      " must be known when XLA compiles for a GPU (jit_compile=True): give constants, or call the "
      "operator outside of what XLA compiles");
}

Status WriteElements(const char* name, const tensorflow::Tensor& elements,
                     AttributeWriter* writer) {
  const auto flat = elements.flat<int32_t>();
  const std::vector<int64_t> values(flat.data(), flat.data() + flat.size());
  return (*writer)(name, &values);
}

void CallHandler(tensorflow::XlaOpKernelContext* context, const char* handler,
                 const std::vector<TensorView>& inputs,
                 const std::vector<ElementType>& operand_types,
                 const std::vector<TensorView>& outputs, const AttributeWriter& attributes) {
  std::vector<xla::XlaOp> operands;
  std::vector<xla::Shape> operand_shapes, result_shapes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    xla::XlaOp operand = context->Input(i);
    if (operand_types[i] != inputs[i].type) {
      operand = xla::ConvertElementType(operand, ToPrimitiveType(operand_types[i]));
    }
    operands.push_back(operand);
    operand_shapes.push_back(DenseShape(operand_types[i], inputs[i].shape));
  }
  for (const TensorView& output : outputs) {
    result_shapes.push_back(DenseShape(output.type, output.shape));
  }
  const xla::XlaOp call = xla::CustomCallWithLayout(
      context->builder(), handler, operands, xla::ShapeUtil::MakeTupleShape(result_shapes),
      operand_shapes, attributes.Dictionary(), /*has_side_effect=*/false,
      /*output_operand_aliasing=*/{}, /*literal=*/nullptr, xla::CustomCallSchedule::SCHEDULE_NONE,
      xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
  for (size_t i = 0; i < outputs.size(); ++i) {
    context->SetOutput(i, xla::GetTupleElement(call, i));
  }
}

void RegisterHandler(const char* name, const char* platform, XLA_FFI_Handler* handler) {
  const XLA_FFI_Api* const api = xla::ffi::GetXlaFfiApi();
  XLA_FFI_Handler_Register_Args arguments = {};
  arguments.struct_size = XLA_FFI_Handler_Register_Args_STRUCT_SIZE;
  arguments.name = {name, std::strlen(name)};
  arguments.platform = {platform, std::strlen(platform)};
  arguments.bundle.execute = handler;
  XLA_FFI_Error* const error = api->XLA_FFI_Handler_Register(&arguments);
  if (error == nullptr) return;
  XLA_FFI_Error_GetMessage_Args message = {};
  message.struct_size = XLA_FFI_Error_GetMessage_Args_STRUCT_SIZE;
  message.error = error;
  api->XLA_FFI_Error_GetMessage(&message);
  LOG(ERROR) << "tf_deformable: XLA refuses the handler " << name << " for " << platform << ": "
             << message.message;
  XLA_FFI_Error_Destroy_Args destroyed = {};
  destroyed.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE;
  destroyed.error = error;
  api->XLA_FFI_Error_Destroy(&destroyed);
}

}  // namespace tf_deformable
