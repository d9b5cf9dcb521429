// Whether something went well, and if not, whose fault it is.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_STATUS_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_STATUS_H_

#include <string>
#include <utility>

namespace tf_deformable {

class Status {
 public:
  enum class Code {
    kOk,
    kInvalidArgument,  // no device would take the caller's arguments
    kTooLarge,         // this device does not take them; another one may
    kOutOfMemory,      // the device has too little memory, now
    kDeviceFailed,     // nothing is wrong with the arguments
  };

  Status() = default;  // all is well
  // `message`: one sentence, which begins with the operator's name.
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_STATUS_H_
