// TensorFlow's attributes and shapes as the arguments of the RoI pooling geometry.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_ARGUMENTS_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_ARGUMENTS_H_

#include "absl/status/status.h"
#include "kernels/roi_pool/geometry.h"
#include "tensorflow/core/platform/errors.h"

namespace tf_deformable {

// Context: shape_inference::InferenceContext or OpKernelConstruction.
template <typename Context>
absl::Status ReadAttributes(Context* context, roi_pool::Arguments* arguments) {
  TF_RETURN_IF_ERROR(context->GetAttr("output_size", &arguments->output_size));
  TF_RETURN_IF_ERROR(context->GetAttr("group_size", &arguments->group_size));
  TF_RETURN_IF_ERROR(context->GetAttr("spatial_scale", &arguments->spatial_scale));
  TF_RETURN_IF_ERROR(context->GetAttr("samples_per_bin", &arguments->samples_per_bin));
  TF_RETURN_IF_ERROR(context->GetAttr("gamma", &arguments->gamma));
  return context->GetAttr("aligned", &arguments->aligned);
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_ROI_POOL_ARGUMENTS_H_
