#include "adapters/tensorflow/registration.h"

namespace tf_deformable {

bool IsRegistered(const tensorflow::KernelDef& kernel) {
  const std::string wanted = kernel.SerializeAsString();
  const tensorflow::KernelList registered = tensorflow::GetRegisteredKernelsForOp(kernel.op());
  for (const tensorflow::KernelDef& other : registered.kernel()) {
    if (other.SerializeAsString() == wanted) return true;
  }
  return false;
}

}  // namespace tf_deformable
