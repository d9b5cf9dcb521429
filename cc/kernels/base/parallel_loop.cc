#include "kernels/base/parallel_loop.h"

#include <pthread.h>

#include <atomic>
#include <utility>

namespace tf_deformable {
namespace {

// What the threads of a loop share. Each of them holds it, and the last one that lets it go deletes
// it: a thread that begins when the loop has ended finds no unit here, and touches nothing else.
//
// The count and the locks are plain ones: std::shared_ptr and std::condition_variable of g++ 12
// would need its libstdc++ and a glibc of 2.32, on every machine that the library is to run on.
class Loop {
 public:
  Loop(int64_t units, Executor::Task task, const void* context,
       std::function<void(std::function<void()>)> schedule)
      : units_(units), task_(task), context_(context), schedule_(std::move(schedule)) {}

  void Release() {
    if (--holders_ == 0) delete this;
  }

  // Asks for the workers (first, last), half of them through the first of those: waking a thread
  // takes time. Then works as `first`, on the unit that it has taken before: so the loop does not
  // end while others are asked for.
  void Work(int first, int last) {
    int64_t unit = next_++;
    if (unit >= units_) return;
    while (last - first > 1 && next_ < units_) {
      const int middle = first + (last - first + 1) / 2;
      ++holders_;
      schedule_([this, middle, last] {
        Work(middle, last);
        Release();
      });
      last = middle;
    }
    // Each worker takes the next unit as it gets free: units differ in cost, threads in speed.
    int64_t done = 0;
    for (; unit < units_; unit = next_++, ++done) task_(context_, unit, first);
    pthread_mutex_lock(&mutex_);
    finished_ += done;
    if (finished_ == units_) pthread_cond_signal(&all_finished_);
    pthread_mutex_unlock(&mutex_);
  }

  void Wait() {
    pthread_mutex_lock(&mutex_);
    while (finished_ != units_) pthread_cond_wait(&all_finished_, &mutex_);
    pthread_mutex_unlock(&mutex_);
  }

 private:
  ~Loop() {
    pthread_cond_destroy(&all_finished_);
    pthread_mutex_destroy(&mutex_);
  }

  const int64_t units_;
  const Executor::Task task_;
  const void* const context_;
  const std::function<void(std::function<void()>)> schedule_;
  std::atomic<int> holders_{1};
  std::atomic<int64_t> next_{0};
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t all_finished_ = PTHREAD_COND_INITIALIZER;
  int64_t finished_ = 0;
};

}  // namespace

void ParallelLoop(int64_t units, int workers, Executor::Task task, const void* context,
                  std::function<void(std::function<void()>)> schedule) {
  Loop* const loop = new Loop(units, task, context, std::move(schedule));
  loop->Work(0, workers);
  loop->Wait();
  loop->Release();
}

}  // namespace tf_deformable
