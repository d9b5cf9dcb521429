#include "adapters/tensorflow/tf_executor.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "kernels/base/parallel_loop.h"
#include "tensorflow/core/platform/threadpool.h"

namespace tf_deformable {
namespace {

// Less work than this is finished before another thread has woken up.
constexpr int64_t kWorthAThread = 100'000;

}  // namespace

TfExecutor::TfExecutor(tensorflow::OpKernelContext* context)
    : pool_(context->device()->tensorflow_cpu_worker_threads()->workers) {}

int TfExecutor::num_workers() const { return pool_->NumThreads(); }

void TfExecutor::Run(int64_t units, int64_t operations, Task task, const void* context) {
  const int64_t worth = std::max<int64_t>(units * operations / kWorthAThread, 1);
  const int workers = std::min<int64_t>({num_workers(), units, worth});
  if (workers == 1) {
    for (int64_t unit = 0; unit < units; ++unit) task(context, unit, 0);
    return;
  }
  // Not ThreadPool::ParallelFor: how to ask it for one task per worker is not the same in all
  // versions of TensorFlow, and it waits for threads that have not begun.
  ParallelLoop(units, workers, task, context,
               [pool = pool_](std::function<void()> work) { pool->Schedule(std::move(work)); });
}

absl::Status AllocateWorkspace(tensorflow::OpKernelContext* context, int64_t bytes,
                               tensorflow::Tensor* workspace) {
  return context->allocate_temp(tensorflow::DT_UINT8, tensorflow::TensorShape({bytes}), workspace);
}

}  // namespace tf_deformable
