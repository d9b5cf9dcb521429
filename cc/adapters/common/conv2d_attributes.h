// Attributes that several calls of convolutions have.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_ATTRIBUTES_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_ATTRIBUTES_H_

#include <cstdint>
#include <string>

#include "kernels/base/status.h"
#include "kernels/deformable_conv2d/geometry.h"

namespace tf_deformable::deformable_conv2d {

// `op` begins the message.
[[nodiscard]] Status CheckZeroOrOne(const char* op, const char* name, int64_t count);
[[nodiscard]] Status ReadPadding(const char* op, const std::string& name, Padding* padding);

}  // namespace tf_deformable::deformable_conv2d

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_CONV2D_ATTRIBUTES_H_
