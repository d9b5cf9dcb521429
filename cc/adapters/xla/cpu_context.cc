#include "adapters/xla/cpu_context.h"

#include <algorithm>
#include <cstdlib>

#include "kernels/base/integers.h"

namespace tf_deformable {

HostWorkspace::HostWorkspace(int64_t bytes)
    : data_(std::aligned_alloc(64, RoundUp(std::max<int64_t>(bytes, 1), 64))) {}

void HostWorkspace::Free::operator()(void* data) const { std::free(data); }

}  // namespace tf_deformable
