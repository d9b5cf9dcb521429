#include "adapters/tensorflow/tf_executor.h"

#include <functional>
#include <utility>

#include "tensorflow/core/platform/threadpool.h"

namespace tf_deformable {

PoolExecutor TfExecutor(tensorflow::OpKernelContext* context) {
  tensorflow::thread::ThreadPool* const pool =
      context->device()->tensorflow_cpu_worker_threads()->workers;
  // Not ThreadPool::ParallelFor: how to ask it for one task per worker is not the same in all
  // versions of TensorFlow, and it waits for threads that have not begun.
  return PoolExecutor(pool->NumThreads(),
                      [pool](std::function<void()> work) { pool->Schedule(std::move(work)); });
}

absl::Status AllocateWorkspace(tensorflow::OpKernelContext* context, int64_t bytes,
                               tensorflow::Tensor* workspace) {
  return context->allocate_temp(tensorflow::DT_UINT8, tensorflow::TensorShape({bytes}), workspace);
}

}  // namespace tf_deformable
