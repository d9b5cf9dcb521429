#include "kernels/base/parallel_loop.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>

namespace tf_deformable {
namespace {

// What the threads of a loop share. Whoever holds it keeps it: a thread that begins when the loop
// has ended finds no unit here, and touches nothing else.
class Loop : public std::enable_shared_from_this<Loop> {
 public:
  Loop(int64_t units, Executor::Task task, const void* context,
       std::function<void(std::function<void()>)> schedule)
      : units_(units), task_(task), context_(context), schedule_(std::move(schedule)) {}

  // Asks for the workers (first, last), half of them through the first of those: waking a thread
  // takes time. Then works as `first`.
  void Work(int first, int last) {
    while (last - first > 1 && next_ < units_) {
      const int middle = first + (last - first + 1) / 2;
      schedule_([loop = shared_from_this(), middle, last] { loop->Work(middle, last); });
      last = middle;
    }
    // Each worker takes the next unit as it gets free: units differ in cost, threads in speed.
    int64_t done = 0;
    for (int64_t unit = next_++; unit < units_; unit = next_++, ++done) {
      task_(context_, unit, first);
    }
    if (done == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_ += done;
    if (finished_ == units_) all_finished_.notify_one();
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, [this] { return finished_ == units_; });
  }

 private:
  const int64_t units_;
  const Executor::Task task_;
  const void* const context_;
  const std::function<void(std::function<void()>)> schedule_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
  int64_t finished_ = 0;
};

}  // namespace

void ParallelLoop(int64_t units, int workers, Executor::Task task, const void* context,
                  std::function<void(std::function<void()>)> schedule) {
  const auto loop = std::make_shared<Loop>(units, task, context, std::move(schedule));
  loop->Work(0, workers);
  loop->Wait();
}

}  // namespace tf_deformable
