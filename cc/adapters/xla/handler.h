// The FFI handler of every operator: a call (adapters/common/*_call.h), computed on a device.
//
// Only the headers of XLA's FFI are included, which stand alone. So TensorFlow, JAX and whatever
// else runs XLA can call the handlers, and this library needs none of them.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_XLA_HANDLER_H_
#define TF_DEFORMABLE_CC_ADAPTERS_XLA_HANDLER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapters/common/rules.h"
#include "adapters/common/tensor_view.h"
#include "kernels/base/float_types.h"
#include "kernels/base/status.h"
#include "xla/ffi/api/ffi.h"

namespace tf_deformable {

namespace ffi = ::xla::ffi;

ffi::Error ToFfiError(const Status& status);

// Operands or results of a call.
[[nodiscard]] Status View(const ffi::RemainingArgs& operands, std::vector<TensorView>* views);
[[nodiscard]] Status View(const ffi::RemainingRets& results, std::vector<TensorView>* views);

// Checks that what the program has for results is what the call gives, and sets the memory.
[[nodiscard]] Status Bind(const char* op, const std::vector<TensorView>& results,
                          std::vector<TensorView>* outputs);

// Reads attributes; for Call::VisitAttributes.
class AttributeReader {
 public:
  AttributeReader(const char* op, const ffi::Dictionary& attributes)
      : op_(op), attributes_(attributes) {}

  Status operator()(const char* name, int64_t* value) { return Read<int64_t>(name, value); }
  Status operator()(const char* name, float* value) { return Read<float>(name, value); }
  Status operator()(const char* name, bool* value) { return Read<bool>(name, value); }
  Status operator()(const char* name, std::string* value) {
    return Read<std::string_view>(name, value);
  }
  Status operator()(const char* name, std::vector<int64_t>* values) {
    ffi::Span<const int64_t> span;
    Status status = Read<ffi::Span<const int64_t>>(name, &span);
    values->assign(span.begin(), span.end());
    return status;
  }

 private:
  template <typename Attribute, typename Value>
  Status Read(const char* name, Value* value) {
    ffi::ErrorOr<Attribute> read = attributes_.get<Attribute>(name);
    if (read.has_error()) {
      return Invalid(op_, std::string("the attribute ") + name + ": " + read.error().message());
    }
    *value = *read;
    return Status();
  }

  const char* op_;
  const ffi::Dictionary& attributes_;
};

// The elements of an operand of int32 that the host reads, where the operand is not in its memory:
// an attribute of the operand's name, which there is if they were known as XLA compiled.
class HostElements {
 public:
  [[nodiscard]] Status Read(const char* op, const char* name, const ffi::Dictionary& attributes,
                            TensorView* view);

 private:
  std::vector<int32_t> elements_;
};

// Calls function(S()), S being the type of features.
template <typename Function>
Status DispatchFeatures(ElementType type, const Function& function) {
  switch (type) {
    case ElementType::kHalf:
      return function(Half());
    case ElementType::kBFloat16:
      return function(BFloat16());
    case ElementType::kFloat:
      return function(float());
    default:
      return function(double());
  }
}

// A device, for Compute, where a plan computes the call and there is nothing to check.
template <typename Context, template <typename> class Plan>
struct PlanDevice {
  Context context;

  template <typename Geometry>
  Status Prepare(const Geometry&, const std::vector<TensorView>&) {
    return Status();
  }
  template <typename Geometry, template <typename> class Tensors, typename S>
  Status Run(const Geometry& geometry, const Tensors<S>& tensors) {
    return context.template RunPlan<Plan<S>>(geometry, tensors);
  }
};

// Computes a call on a device with a context (cpu_context.h, cuda_context.h). `device` has
//   Status Prepare(geometry, inputs): checks what is in its memory;
//   Status Run(geometry, tensors).
template <typename Call, typename Context, typename Device>
Status Compute(Device& device, const ffi::RemainingArgs& operands,
               const ffi::RemainingRets& results, const ffi::Dictionary& attributes) {
  Call call;
  Status status = call.VisitAttributes(AttributeReader(Call::kOp, attributes));
  if (status.ok()) status = call.CheckAttributes();
  std::vector<TensorView> inputs, given;
  if (status.ok()) status = View(operands, &inputs);
  if (status.ok()) status = View(results, &given);
  if (!status.ok()) return status;

  status = call.CheckTypes(TypesOf(inputs));
  HostElements elements;
  if constexpr (Call::kHostInput >= 0 && !Context::kOperandsAreOnHost) {
    if (status.ok()) {
      status = elements.Read(Call::kOp, call.InputName(Call::kHostInput), attributes,
                             &inputs[Call::kHostInput]);
    }
  }
  typename Call::Geometry geometry;
  if (status.ok()) status = call.Parse(inputs, &geometry);
  if (!status.ok()) return status;
  std::vector<TensorView> outputs = call.Outputs(inputs, geometry);
  status = Bind(Call::kOp, given, &outputs);
  if (status.ok()) status = device.Prepare(geometry, inputs);
  if (!status.ok()) return status;
  return DispatchFeatures(inputs[0].type, [&](auto element) {
    return device.Run(geometry, call.template Tensors<decltype(element)>(inputs, outputs));
  });
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_XLA_HANDLER_H_
