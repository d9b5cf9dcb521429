#include "adapters/common/pool_executor.h"

#include <algorithm>
#include <utility>

#include "kernels/base/parallel_loop.h"

namespace tf_deformable {
namespace {

// Less work than this is finished before another thread has woken up.
constexpr int64_t kWorthAThread = 100'000;

}  // namespace

PoolExecutor::PoolExecutor(int threads, Schedule schedule)
    : threads_(std::max(threads, 1)), schedule_(std::move(schedule)) {}

void PoolExecutor::Run(int64_t units, int64_t operations, Task task, const void* context) {
  const int64_t worth = std::max<int64_t>(units * operations / kWorthAThread, 1);
  const int workers = std::min<int64_t>({threads_, units, worth});
  if (workers == 1) {
    for (int64_t unit = 0; unit < units; ++unit) task(context, unit, 0);
    return;
  }
  ParallelLoop(units, workers, task, context, schedule_);
}

}  // namespace tf_deformable
