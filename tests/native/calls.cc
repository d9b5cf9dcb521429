// Checks what the calls of the operators (adapters/common) refuse, and by which names, where only
// an adapter tells: TensorFlow's operators are registered with such types and counts that most of
// it cannot be wrong there, those of XLA are not. Prints what failed and exits with 1, or prints
// "all checks passed".

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "adapters/common/conv2d_branch_call.h"
#include "adapters/common/deformable_attention_call.h"
#include "adapters/common/deformable_conv2d_call.h"
#include "adapters/common/element_type.h"
#include "adapters/common/roi_pool_call.h"
#include "kernels/base/status.h"

namespace tf_deformable {
namespace {

using Types = std::vector<ElementType>;

constexpr ElementType kHalf = ElementType::kHalf, kFloat = ElementType::kFloat,
                      kDouble = ElementType::kDouble, kInt32 = ElementType::kInt32;

// Gives a call the attributes that a test names; the others are as the call has them.
class Attributes {
 public:
  Attributes& Set(const std::string& name, int64_t value) {
    integers_[name] = value;
    return *this;
  }
  Attributes& Set(const std::string& name, const char* value) {
    texts_[name] = value;
    return *this;
  }

  Status operator()(const char* name, int64_t* value) { return Read(integers_, name, value); }
  Status operator()(const char* name, std::string* value) { return Read(texts_, name, value); }
  template <typename Value>
  Status operator()(const char*, Value*) {
    return Status();
  }

 private:
  template <typename Value>
  static Status Read(const std::map<std::string, Value>& values, const char* name, Value* value) {
    const auto found = values.find(name);
    if (found != values.end()) *value = found->second;
    return Status();
  }

  std::map<std::string, int64_t> integers_;
  std::map<std::string, std::string> texts_;
};

void CheckMessage(const Status& status, const std::string& expected) {
  if (status.message() == expected) return;
  std::printf("failed: expected \"%s\", got \"%s\"\n", expected.c_str(), status.message().c_str());
  std::exit(1);
}

template <typename Call>
Status StatusOfAttributes(Attributes attributes, Call* call) {
  const Status status = call->VisitAttributes(attributes);
  return status.ok() ? call->CheckAttributes() : status;
}

// Tensors of these types are refused with this message, without the operator's name; "": taken.
template <typename Call>
void CheckTypes(const Attributes& attributes, const Types& types, const std::string& expected) {
  Call call;
  CheckMessage(StatusOfAttributes(attributes, &call), "");
  CheckMessage(call.CheckTypes(types),
               expected.empty() ? "" : std::string(Call::kOp) + ": " + expected);
}

template <typename Call>
void CheckAttributes(const Attributes& attributes, const std::string& expected) {
  Call call;
  CheckMessage(StatusOfAttributes(attributes, &call), std::string(Call::kOp) + ": " + expected);
}

void DeformableConv2D() {
  using Forward = deformable_conv2d::ForwardCall;
  using Gradient = deformable_conv2d::GradientCall;
  const Attributes plain = Attributes().Set("padding", "SAME");
  const Attributes biased = Attributes(plain).Set("num_biases", 1);
  const Attributes masked = Attributes(plain).Set("num_masks", 1);
  const Attributes both = Attributes(masked).Set("num_biases", 1);

  CheckTypes<Forward>(plain, {kFloat, kFloat, kFloat}, "");
  CheckTypes<Forward>(both, {kHalf, kHalf, kFloat, kFloat, kHalf}, "");
  CheckTypes<Gradient>(masked, {kHalf, kHalf, kHalf, kHalf, kHalf}, "");

  CheckTypes<Forward>(plain, {kFloat, kFloat}, "there must be 3 tensors, got 2");
  CheckTypes<Forward>(biased, {kFloat, kFloat, kFloat}, "there must be 4 tensors, got 3");
  CheckTypes<Gradient>(plain, {kFloat, kFloat, kFloat}, "there must be 4 tensors, got 3");
  CheckTypes<Forward>(plain, {kInt32, kFloat, kFloat},
                      "inputs must have dtype half, bfloat16, float or double, got int32");
  CheckTypes<Forward>(plain, {kFloat, kHalf, kFloat},
                      "filters must have the dtype of inputs (float), got half");
  CheckTypes<Forward>(masked, {kFloat, kFloat, kHalf, kHalf},
                      "offsets and mask must have dtype float beside inputs of float, got half");
  CheckTypes<Forward>(masked, {kHalf, kHalf, kFloat, kHalf},
                      "mask must have the dtype of offsets (float), got half");
  CheckTypes<Forward>(biased, {kFloat, kFloat, kFloat, kDouble},
                      "bias must have the dtype of inputs (float), got double");
  CheckTypes<Forward>(both, {kFloat, kFloat, kFloat, kFloat, kDouble},
                      "bias must have the dtype of inputs (float), got double");
  CheckTypes<Gradient>(plain, {kFloat, kFloat, kFloat, kDouble},
                       "grad_output must have the dtype of inputs (float), got double");
  CheckTypes<Gradient>(masked, {kFloat, kFloat, kFloat, kFloat, kDouble},
                       "grad_output must have the dtype of inputs (float), got double");

  CheckAttributes<Forward>(Attributes().Set("padding", "same"),
                           "padding must be SAME, VALID or EXPLICIT, got same");
  CheckAttributes<Forward>(Attributes(plain).Set("num_masks", 2),
                           "num_masks must be 0 or 1, got 2");
  CheckAttributes<Forward>(Attributes(plain).Set("num_biases", -1),
                           "num_biases must be 0 or 1, got -1");
}

void Conv2DBranch() {
  using Forward = deformable_conv2d::BranchForwardCall;
  using Gradient = deformable_conv2d::BranchGradientCall;
  const Attributes plain = Attributes().Set("padding", "SAME");
  const Attributes masked = Attributes(plain).Set("num_masks", 1);

  CheckTypes<Forward>(masked, {kHalf, kFloat, kFloat}, "");
  CheckTypes<Gradient>(plain, {kDouble, kDouble, kDouble}, "");

  CheckTypes<Forward>(plain, {kFloat, kFloat, kFloat, kFloat}, "there must be 3 tensors, got 4");
  CheckTypes<Gradient>(masked, {kFloat, kFloat, kFloat}, "there must be 5 tensors, got 3");
  const std::string rule = " must have dtype float beside inputs of half, got half";
  CheckTypes<Forward>(plain, {kHalf, kHalf, kFloat}, "filters" + rule);
  CheckTypes<Forward>(plain, {kHalf, kFloat, kHalf}, "bias" + rule);
  CheckTypes<Gradient>(plain, {kHalf, kFloat, kHalf}, "grad_offsets" + rule);
  CheckTypes<Gradient>(masked, {kHalf, kFloat, kHalf, kFloat, kFloat}, "mask" + rule);
  CheckTypes<Gradient>(masked, {kHalf, kFloat, kFloat, kHalf, kFloat}, "grad_offsets" + rule);
  CheckTypes<Gradient>(masked, {kHalf, kFloat, kFloat, kFloat, kHalf}, "grad_mask" + rule);
}

void RoiPool() {
  using Forward = roi_pool::ForwardCall;
  using Gradient = roi_pool::GradientCall;
  const Attributes plain;
  const Attributes masked = Attributes().Set("num_masks", 1);
  const Attributes both = Attributes(masked).Set("num_offsets", 1);

  CheckTypes<Forward>(both, {kHalf, kDouble, kInt32, kFloat, kFloat}, "");
  CheckTypes<Gradient>(masked, {kFloat, kFloat, kInt32, kFloat, kFloat}, "");

  CheckTypes<Forward>(both, {kFloat, kFloat, kInt32}, "there must be 5 tensors, got 3");
  CheckTypes<Gradient>(plain, {kFloat, kFloat, kInt32}, "there must be 4 tensors, got 3");
  CheckTypes<Forward>(plain, {kFloat, kFloat, kFloat},
                      "box_indices must have dtype int32, got float");
  CheckTypes<Forward>(both, {kHalf, kFloat, kInt32, kFloat, kHalf},
                      "mask must have the dtype of offsets (float), got half");
  CheckTypes<Gradient>(masked, {kHalf, kFloat, kInt32, kHalf, kFloat},
                       "grad_output must have the dtype of inputs (half), got float");

  CheckAttributes<Forward>(Attributes().Set("num_offsets", 2), "num_offsets must be 0 or 1, got 2");
  CheckAttributes<Gradient>(Attributes().Set("num_masks", 2), "num_masks must be 0 or 1, got 2");
}

void DeformableAttention() {
  using Forward = deformable_attention::ForwardCall;
  using Gradient = deformable_attention::GradientCall;
  for (const char* coordinates : {"normalized", "pixels"}) {
    const Attributes good = Attributes().Set("coordinates", coordinates);
    CheckTypes<Forward>(good, {kHalf, kInt32, kFloat, kFloat}, "");
    CheckTypes<Gradient>(good, {kHalf, kInt32, kHalf, kHalf, kHalf}, "");
  }
  const Attributes good = Attributes().Set("coordinates", "pixels");

  CheckTypes<Forward>(good, {kFloat, kInt32, kFloat}, "there must be 4 tensors, got 3");
  CheckTypes<Gradient>(good, {kFloat, kInt32, kFloat, kFloat}, "there must be 5 tensors, got 4");
  CheckTypes<Forward>(good, {kFloat, kFloat, kFloat, kFloat},
                      "spatial_shapes must have dtype int32, got float");
  CheckTypes<Forward>(good, {kHalf, kInt32, kFloat, kHalf},
                      "attention_weights must have the dtype of sampling_locations (float), got "
                      "half");
  CheckTypes<Gradient>(good, {kHalf, kInt32, kHalf, kHalf, kFloat},
                       "grad_output must have the dtype of value (half), got float");

  for (const char* coordinates : {"", "pixel", "PIXELS"}) {
    CheckAttributes<Forward>(
        Attributes().Set("coordinates", coordinates),
        std::string("coordinates must be normalized or pixels, got ") + coordinates);
  }
}

}  // namespace
}  // namespace tf_deformable

int main() {
  tf_deformable::DeformableConv2D();
  tf_deformable::Conv2DBranch();
  tf_deformable::RoiPool();
  tf_deformable::DeformableAttention();
  std::printf("all checks passed\n");
}
