// What TensorFlow tells of a call of an operator (adapters/common/*_call.h): its attributes, the
// types and the shapes of its tensors.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CALL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CALL_H_

#include <vector>

#include "absl/status/status.h"
#include "adapters/tensorflow/status.h"
#include "adapters/tensorflow/tensors.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/errors.h"

namespace tf_deformable {

// Context: shape_inference::InferenceContext or OpKernelConstruction.
template <typename Call, typename Context>
absl::Status ReadAttributes(Context* context, Call* call) {
  TF_RETURN_IF_ERROR(call->VisitAttributes(
      [context](const char* name, auto* value) { return context->GetAttr(name, value); }));
  return ToAbslStatus(call->CheckAttributes());
}

// Reads the attributes and checks them, and the types of the tensors.
template <typename Call>
absl::Status ReadCall(tensorflow::OpKernelConstruction* context, Call* call) {
  TF_RETURN_IF_ERROR(ReadAttributes(context, call));
  std::vector<ElementType> types;
  for (int i = 0; i < context->num_inputs(); ++i) {
    types.push_back(ToElementType(context->input_type(i)));
  }
  return ToAbslStatus(call->CheckTypes(types));
}

// For shape functions.
template <typename Call>
absl::Status ParseCall(tensorflow::shape_inference::InferenceContext* context, Call* call,
                       std::vector<TensorView>* inputs, typename Call::Geometry* geometry) {
  TF_RETURN_IF_ERROR(ReadAttributes(context, call));
  for (int i = 0; i < context->num_inputs(); ++i) {
    inputs->push_back({ElementType::kOther, ToShape(context, context->input(i))});
  }
  if constexpr (Call::kHostInput >= 0) {
    if (const tensorflow::Tensor* constant = context->input_tensor(Call::kHostInput)) {
      (*inputs)[Call::kHostInput] = View(*constant);
    }
  }
  return ToAbslStatus(call->Parse(*inputs, geometry));
}

// The shape function of a call, by its outputs.
template <typename Call>
absl::Status SetOutputShapes(tensorflow::shape_inference::InferenceContext* context) {
  Call call;
  std::vector<TensorView> inputs;
  typename Call::Geometry geometry;
  TF_RETURN_IF_ERROR(ParseCall(context, &call, &inputs, &geometry));
  const std::vector<TensorView> outputs = call.Outputs(inputs, geometry);
  for (size_t i = 0; i < outputs.size(); ++i) {
    context->set_output(i, ToHandle(context, outputs[i].shape));
  }
  return absl::OkStatus();
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CALL_H_
