// Checks ParallelLoop; says which check failed and exits with 1, or prints "all checks passed".

#include "kernels/base/parallel_loop.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "pool.h"

namespace tf_deformable {
namespace {

using Work = std::function<void()>;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::fflush(stdout);
  std::_Exit(1);  // threads may wait for what will not come
}

template <typename F>
void Loop(int64_t units, int workers, const F& function, std::function<void(Work)> schedule) {
  ParallelLoop(
      units, workers,
      [](const void* context, int64_t unit, int worker) {
        (*static_cast<const F*>(context))(unit, worker);
      },
      &function, std::move(schedule));
}

// What units write, and read of the worker they run as, is not atomic: the thread sanitizer tells.
void EachUnitOnceAndWorkersOneAtATime(int seed, const std::function<void(Work)>& schedule) {
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    const int64_t units = 1 + random() % 40;
    const int workers = 1 + random() % 6;
    std::vector<int> calls(units), calls_of_worker(workers);
    std::vector<std::atomic<bool>> is_busy(workers);
    Loop(
        units, workers,
        [&](int64_t unit, int worker) {
          Check(worker >= 0 && worker < workers, "workers are in their range");
          Check(!is_busy[worker].exchange(true), "no worker runs two units at once");
          std::this_thread::sleep_for(std::chrono::microseconds(unit % 4 * 20));  // others begin
          ++calls[unit];
          ++calls_of_worker[worker];
          is_busy[worker] = false;
        },
        schedule);
    int sum = 0;
    for (int64_t unit = 0; unit < units; ++unit) Check(calls[unit] == 1, "each unit runs once");
    for (int count : calls_of_worker) sum += count;
    Check(sum == units, "each call is of one worker");
  }
}

void LoopsOfManyThreadsAtOnce() {
  Pool pool(3);
  std::vector<std::thread> threads;
  for (int seed = 0; seed < 3; ++seed) {
    threads.emplace_back([&, seed] {
      EachUnitOnceAndWorkersOneAtATime(seed, [&](Work work) { pool.Schedule(std::move(work)); });
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// TensorFlow's pool does this when its queue is full.
void ScheduleThatRunsAtOnce() {
  EachUnitOnceAndWorkersOneAtATime(0, [](Work work) { work(); });
}

// Every unit waits for all others: without a thread for each, on one of them the calling thread,
// this does not end.
void AllWorkersRunAtOnce() {
  for (int workers : {2, 3, 8, 13}) {
    Pool pool(workers - 1);
    const std::thread::id caller = std::this_thread::get_id();
    std::mutex mutex;
    std::condition_variable changed;
    int running = 0;
    bool caller_took_part = false;
    Loop(
        workers, workers,
        [&](int64_t, int) {
          std::unique_lock<std::mutex> lock(mutex);
          caller_took_part |= std::this_thread::get_id() == caller;
          ++running;
          changed.notify_all();
          Check(
              changed.wait_for(lock, std::chrono::seconds(60), [&] { return running == workers; }),
              "all workers run at once");
        },
        [&](Work work) { pool.Schedule(std::move(work)); });
    Check(caller_took_part, "the calling thread takes part");
  }
}

// All threads of the pool are in a loop, and the units of that in loops of their own.
void LoopsInThreadsOfThePool() {
  std::atomic<int> units{0};
  {
    Pool pool(2);
    const auto schedule = [&](Work work) { pool.Schedule(std::move(work)); };
    for (int i = 0; i < 50; ++i) {
      pool.Schedule([&units, schedule] {
        Loop(
            4, 3, [&](int64_t, int) { Loop(5, 3, [&](int64_t, int) { ++units; }, schedule); },
            schedule);
      });
    }
  }
  Check(units == 50 * 4 * 5, "loops in loops run all units");
}

// What they were for is gone by then.
void ThreadsThatComeTooLate() {
  std::vector<Work> late;
  {
    const auto calls = std::make_unique<std::vector<int>>(20);
    const std::thread::id caller = std::this_thread::get_id();
    Loop(
        20, 5,
        [&](int64_t unit, int worker) {
          Check(worker == 0 && std::this_thread::get_id() == caller, "the loop waits for nobody");
          ++(*calls)[unit];
        },
        [&](Work work) { late.push_back(std::move(work)); });
    for (int count : *calls) Check(count == 1, "a loop without a pool runs each unit once");
  }
  Check(!late.empty(), "a loop asks for threads");
  for (size_t i = 0; i < late.size(); ++i) {
    const Work work = std::move(late[i]);
    const size_t asked = late.size();
    work();
    Check(late.size() == asked, "who comes too late asks for nobody");
  }
}

// What `schedule` needs may be gone with the loop: the pool that XLA lends for one call is.
void NobodyIsAskedForAfterTheEnd() {
  Pool pool(3);
  std::vector<std::unique_ptr<std::atomic<bool>>> ends;
  for (int round = 0; round < 50; ++round) {
    std::atomic<bool>& ended = *ends.emplace_back(std::make_unique<std::atomic<bool>>(false));
    Loop(
        8, 4, [](int64_t, int) {},
        [&](Work work) {
          std::this_thread::sleep_for(std::chrono::microseconds(300));  // others finish the units
          Check(!ended, "a loop that has ended asks for nobody");
          pool.Schedule(std::move(work));
        });
    ended = true;
  }
}

}  // namespace
}  // namespace tf_deformable

int main() {
  tf_deformable::LoopsOfManyThreadsAtOnce();
  tf_deformable::ScheduleThatRunsAtOnce();
  tf_deformable::AllWorkersRunAtOnce();
  tf_deformable::LoopsInThreadsOfThePool();
  tf_deformable::ThreadsThatComeTooLate();
  tf_deformable::NobodyIsAskedForAfterTheEnd();
  std::printf("all checks passed\n");
}
