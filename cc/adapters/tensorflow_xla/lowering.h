// What TensorFlow's XLA compiler makes of every operator: a call of its FFI handler.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_XLA_LOWERING_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_XLA_LOWERING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/tensorflow/call.h"
#include "adapters/tensorflow/registration.h"
#include "adapters/tensorflow/status.h"
#include "adapters/xla/handlers.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"

namespace tf_deformable {

// Writes attributes as the typed FFI reads them: an MLIR dictionary. For Call::VisitAttributes.
class AttributeWriter {
 public:
  Status operator()(const char* name, const int64_t* value);
  Status operator()(const char* name, const float* value);
  Status operator()(const char* name, const bool* value);
  Status operator()(const char* name, const std::string* value);
  Status operator()(const char* name, const std::vector<int64_t>* values);

  std::string Dictionary() const { return "{" + text_ + "}"; }

 private:
  Status Add(const char* name, const std::string& value);

  std::string text_;
};

// A device of TensorFlow's XLA compiler, and the platform that runs what it compiles.
struct Platform {
  const char* device;  // as TensorFlow names it
  const char* name;    // as XLA names it
  // Whether handlers find their operands in the host's memory.
  bool operands_are_on_host;
  // Adds what the handlers of this platform read beside the operator's attributes.
  void (*write_settings)(AttributeWriter* writer);
};

// The type and shape of one of the tensors that an operator reads. A shape that only the run will
// show is an error.
[[nodiscard]] absl::Status StaticInput(tensorflow::XlaOpKernelContext* context, const char* op,
                                       const char* name, int input, TensorView* view);

// Sets `constant`, and the view to it, to an input that the host reads, if its elements are known
// as XLA compiles. If not, they are left to the run, or, if handlers will not find them in the
// host's memory, are an error.
[[nodiscard]] absl::Status HostInput(tensorflow::XlaOpKernelContext* context, const char* op,
                                     const char* name, int input, bool operands_are_on_host,
                                     tensorflow::Tensor* constant, TensorView* view);

// The attribute from which a handler of another device reads such elements (HostElements).
[[nodiscard]] Status WriteElements(const char* name, const tensorflow::Tensor& elements,
                                   AttributeWriter* writer);

// Calls a handler with the operator's inputs, converted to `operand_types`; the results become the
// operator's outputs.
void CallHandler(tensorflow::XlaOpKernelContext* context, const char* handler,
                 const std::vector<TensorView>& inputs,
                 const std::vector<ElementType>& operand_types,
                 const std::vector<TensorView>& outputs, const AttributeWriter& attributes);

// Makes a handler known to XLA.
void RegisterHandler(const char* name, const char* platform, XLA_FFI_Handler* handler);

template <typename Call, const Platform& platform>
class Lowering : public tensorflow::XlaOpKernel {
 public:
  explicit Lowering(tensorflow::OpKernelConstruction* context) : tensorflow::XlaOpKernel(context) {
    OP_REQUIRES_OK(context, ReadCall(context, &call_));
  }

  void Compile(tensorflow::XlaOpKernelContext* context) override {
    std::vector<TensorView> inputs(context->num_inputs());
    for (size_t i = 0; i < inputs.size(); ++i) {
      OP_REQUIRES_OK(context, StaticInput(context, Call::kOp, call_.InputName(i), i, &inputs[i]));
    }
    tensorflow::Tensor constant;
    if constexpr (Call::kHostInput >= 0) {
      OP_REQUIRES_OK(context, HostInput(context, Call::kOp, call_.InputName(Call::kHostInput),
                                        Call::kHostInput, platform.operands_are_on_host, &constant,
                                        &inputs[Call::kHostInput]));
    }
    typename Call::Geometry geometry;
    OP_REQUIRES_OK(context, ToAbslStatus(call_.Parse(inputs, &geometry)));
    AttributeWriter attributes;
    OP_REQUIRES_OK(context, ToAbslStatus(call_.VisitAttributes(attributes)));
    if constexpr (Call::kHostInput >= 0 && !platform.operands_are_on_host) {
      OP_REQUIRES_OK(context, ToAbslStatus(WriteElements(call_.InputName(Call::kHostInput),
                                                         constant, &attributes)));
    }
    platform.write_settings(&attributes);
    CallHandler(context, Call::kHandler, inputs, call_.KernelTypes(inputs),
                call_.Outputs(inputs, geometry), attributes);
  }

 private:
  Call call_;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_XLA_LOWERING_H_
