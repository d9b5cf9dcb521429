// How the kernels ask for threads, without knowing whose threads they are.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_EXECUTOR_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_EXECUTOR_H_

#include <cstdint>

namespace tf_deformable {

class Executor {
 public:
  // `worker` is in [0, num_workers()) and no two calls run at once with the same worker.
  using Task = void (*)(const void* context, int64_t unit, int worker);

  virtual ~Executor() = default;
  virtual int num_workers() const = 0;
  // Calls task(context, unit, worker) once for every unit in [0, units), in any order and at once;
  // returns when all have finished. `operations` estimates the arithmetic of one unit.
  virtual void Run(int64_t units, int64_t operations, Task task, const void* context) = 0;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_EXECUTOR_H_
