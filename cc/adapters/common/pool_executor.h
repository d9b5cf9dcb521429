// An executor on the threads of a framework's pool.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_COMMON_POOL_EXECUTOR_H_
#define TF_DEFORMABLE_CC_ADAPTERS_COMMON_POOL_EXECUTOR_H_

#include <functional>

#include "kernels/base/executor.h"

namespace tf_deformable {

class PoolExecutor : public Executor {
 public:
  // Makes a thread of the pool run the work, some time, or runs it itself. It is called from
  // threads of the pool too, and not after the Run that calls it has returned.
  using Schedule = std::function<void(std::function<void()>)>;

  // The calling thread works in place of one of the pool's `threads`.
  PoolExecutor(int threads, Schedule schedule);

  int num_workers() const override { return threads_; }
  void Run(int64_t units, int64_t operations, Task task, const void* context) override;

 private:
  const int threads_;
  const Schedule schedule_;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_COMMON_POOL_EXECUTOR_H_
