#include "adapters/common/conv2d_attributes.h"

#include "adapters/common/rules.h"

namespace tf_deformable::deformable_conv2d {

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
