// A small thread pool whose idle threads sleep.
//
// MindSpore runs its own operators on its own threads; a pool that spins while it waits (as OpenMP
// runtimes do) would take the cores away from them between two of our operators.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace spnas {

class Pool {
 public:
  using Task = std::function<void(int64_t)>;

  static Pool &instance() {
    static Pool *pool = new Pool;  // never destroyed: its threads sleep until the process ends
    return *pool;
  }

  // Runs task(0) ... task(count - 1), on any thread, and returns whether none of them threw. Tasks
  // begin in this order and may end in any.
  //
  // A task's result must not depend on its thread. The caller works too and waits only for threads
  // that have begun to work: a thread that the system has not scheduled yet (or that a fork has
  // lost) holds nobody up.
  bool run(int64_t count, const Task &task) {
    Job job{task, count};
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    // A second caller at the same time does all of its job itself.
    if (workers_ == 0 || count < 2 || !owner.owns_lock()) {
      job.work();
      return !job.failed;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    idle_.wait(lock, [this] { return active_ == 0; });
    return !job.failed;
  }

 private:
  struct Job {
    const Task &task;
    const int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    void work() {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        try {
          task(i);
        } catch (...) {
          failed = true;
        }
      }
    }
  };

  Pool() {
    int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    if (const char *limit = std::getenv("SPNAS_KERNEL_THREADS")) {
      threads = std::max(1, std::min(threads, std::atoi(limit)));
    }
    for (; workers_ < threads - 1; ++workers_) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error &) {  // a limit of the system: those that there are do it
        break;
      }
    }
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && generation_ != seen; });
      seen = generation_;
      Job *job = job_;
      ++active_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--active_ == 0) {
        idle_.notify_one();
      }
    }
  }

  std::mutex owner_, mutex_;
  std::condition_variable wake_, idle_;
  Job *job_ = nullptr;
  uint64_t generation_ = 0;
  int active_ = 0, workers_ = 0;
};

}  // namespace spnas
