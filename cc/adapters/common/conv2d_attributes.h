// Attributes that several calls of convolutions have.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_ATTRIBUTES_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_ATTRIBUTES_H_

#include <cstdint>
#include <string>

#include "kernels/base/status.h"
#include "kernels/deformable_conv2d/geometry.h"

namespace tf_deformable::deformable_conv2d {

// `op` begins the message.
[[nodiscard]] Status ReadPadding(const char* op, const std::string& name, Padding* padding);

// The part of a call's VisitAttributes (deformable_conv2d_call.h) that visits strides, dilations
// and padding, whose name goes to `padding`.
template <typename Visit>
auto VisitWindow(Visit&& visit, Arguments* arguments, std::string* padding) {
  auto status = visit("strides", &arguments->strides);
  if (status.ok()) status = visit("dilations", &arguments->dilations);
  if (status.ok()) status = visit("padding", padding);
  if (status.ok()) status = visit("explicit_paddings", &arguments->explicit_paddings);
  return status;
}

}  // namespace tf_deformable::deformable_conv2d

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_ATTRIBUTES_H_
