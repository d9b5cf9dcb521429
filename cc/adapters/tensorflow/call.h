// What TensorFlow tells of a call of an operator (adapters/common/*_call.h): its attributes, the
// types and the shapes of its tensors.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CALL_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CALL_H_

#include <initializer_list>
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

// For shape functions. `read`: inputs of which the elements are read, if they are constants.
template <typename Call>
absl::Status ParseCall(tensorflow::shape_inference::InferenceContext* context, Call* call,
                       std::vector<TensorView>* inputs, typename Call::Geometry* geometry,
                       std::initializer_list<int> read = {}) {
  TF_RETURN_IF_ERROR(ReadAttributes(context, call));
  for (int i = 0; i < context->num_inputs(); ++i) {
    inputs->push_back({ElementType::kOther, ToShape(context, context->input(i))});
  }
  for (const int i : read) {
    if (const tensorflow::Tensor* constant = context->input_tensor(i)) {
      (*inputs)[i] = View(*constant);
    }
  }
  return ToAbslStatus(call->Parse(*inputs, geometry));
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_CALL_H_
