// A loop over units of work on the calling thread and those of a pool.
#ifndef TF_DEFORMABLE_CC_KERNELS_BASE_PARALLEL_LOOP_H_
#define TF_DEFORMABLE_CC_KERNELS_BASE_PARALLEL_LOOP_H_

#include <cstdint>
#include <functional>

#include "kernels/base/executor.h"

namespace tf_deformable {

// Calls task(context, unit, worker) once for every unit in [0, units), each worker in [0, workers)
// on a thread of its own, the calling one as worker 0; returns when all calls have returned.
//
// `schedule` makes a thread of the pool run what it is given, some time. It is called from threads
// of the loop, and not after the loop has ended. The loop waits for no thread that has not begun a
// unit: it ends, on the calling thread alone if need be, when the pool is busy, and when all its
// threads are in such loops themselves.
void ParallelLoop(int64_t units, int workers, Executor::Task task, const void* context,
                  std::function<void(std::function<void()>)> schedule);

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_BASE_PARALLEL_LOOP_H_
