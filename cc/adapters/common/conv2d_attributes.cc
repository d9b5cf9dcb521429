#include "adapters/common/conv2d_attributes.h"

namespace tf_deformable::deformable_conv2d {
namespace {

Status Invalid(const char* op, const std::string& message) {
  return Status(Status::Code::kInvalidArgument, std::string(op) + ": " + message);
}

}  // namespace

Status CheckZeroOrOne(const char* op, const char* name, int64_t count) {
  if (count == 0 || count == 1) return Status();
  return Invalid(op, std::string(name) + " must be 0 or 1, got " + std::to_string(count));
}

Status ReadPadding(const char* op, const std::string& name, Padding* padding) {
  if (name == "SAME") {
    *padding = Padding::kSame;
  } else if (name == "VALID") {
    *padding = Padding::kValid;
  } else if (name == "EXPLICIT") {
    *padding = Padding::kExplicit;
  } else {
    return Invalid(op, "padding must be SAME, VALID or EXPLICIT, got " + name);
  }
  return Status();
}

}  // namespace tf_deformable::deformable_conv2d
