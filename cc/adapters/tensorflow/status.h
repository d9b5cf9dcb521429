// The kernels' Status as TensorFlow's.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_STATUS_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_STATUS_H_

#include "absl/status/status.h"
#include "kernels/base/status.h"

namespace tf_deformable {

inline absl::Status ToAbslStatus(const Status& status) {
  switch (status.code()) {
    case Status::Code::kOk:
      return absl::OkStatus();
    case Status::Code::kInvalidArgument:
    case Status::Code::kTooLarge:
      return absl::InvalidArgumentError(status.message());
    case Status::Code::kOutOfMemory:
      return absl::ResourceExhaustedError(status.message());
    case Status::Code::kDeviceFailed:
      break;
  }
  return absl::InternalError(status.message());
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_STATUS_H_
