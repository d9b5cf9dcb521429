// TensorFlow's attributes and shapes as the arguments of the deformable convolution's geometry.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_ARGUMENTS_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_ARGUMENTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/deformable_conv2d/geometry.h"
#include "tensorflow/core/platform/errors.h"

namespace tf_deformable {

// Context: shape_inference::InferenceContext or OpKernelConstruction.
template <typename Context>
absl::Status ReadAttributes(Context* context, deformable_conv2d::Arguments* arguments) {
  std::string padding;
  TF_RETURN_IF_ERROR(context->GetAttr("strides", &arguments->strides));
  TF_RETURN_IF_ERROR(context->GetAttr("dilations", &arguments->dilations));
  TF_RETURN_IF_ERROR(context->GetAttr("padding", &padding));
  TF_RETURN_IF_ERROR(context->GetAttr("explicit_paddings", &arguments->explicit_paddings));
  arguments->padding = padding == "SAME"    ? deformable_conv2d::Padding::kSame
                       : padding == "VALID" ? deformable_conv2d::Padding::kValid
                                            : deformable_conv2d::Padding::kExplicit;
  return absl::OkStatus();
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_ARGUMENTS_H_
