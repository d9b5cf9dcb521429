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
absl::Status ReadAttributes(Context* context, DeformableConv2DArguments* arguments) {
  std::string padding;
  TF_RETURN_IF_ERROR(context->GetAttr("strides", &arguments->strides));
  TF_RETURN_IF_ERROR(context->GetAttr("dilations", &arguments->dilations));
  TF_RETURN_IF_ERROR(context->GetAttr("padding", &padding));
  TF_RETURN_IF_ERROR(context->GetAttr("explicit_paddings", &arguments->explicit_paddings));
  arguments->padding = padding == "SAME"    ? Padding::kSame
                       : padding == "VALID" ? Padding::kValid
                                            : Padding::kExplicit;
  return absl::OkStatus();
}

inline absl::Status Parse(const DeformableConv2DArguments& arguments,
                          DeformableConv2DGeometry* geometry) {
  const std::string error = ParseDeformableConv2D(arguments, geometry);
  if (error.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(error);
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_DEFORMABLE_CONV2D_ARGUMENTS_H_
