// The division of an operator's work into tasks.
//
// Work is divided by planes or channels, never by the number of threads, so results do not depend
// on it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "call.h"
#include "pool.h"

namespace spnas {

// Floats of work that are worth a task of their own.
constexpr int64_t kGrain = 16384;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Channels of a task: small planes go together, since memory is read best in long runs, of kRun
// floats.
constexpr int64_t kRun = 1024, kMaxGroup = 32;

inline int64_t channel_group(int64_t plane, int64_t limit = kMaxGroup) {
  return std::max<int64_t>(1, std::min(limit, kRun / plane));
}

// Planes that together are worth a task.
inline int64_t plane_group(int64_t plane) { return std::max<int64_t>(1, kGrain / plane); }

// Calls task(first, last) for consecutive ranges of [0, count).
template <typename Task>
Status parallel(int64_t count, int64_t group, const Task &task) {
  const bool ok = Pool::instance().run(divide_up(count, group), [&](int64_t i) {
    task(i * group, std::min(count, (i + 1) * group));
  });
  return ok ? kOk : kFailed;
}

// Calls before(i) for all i < count and then, when all have ended, after(i) for all i < next.
//
// As one job, since waking the threads a second time would take as long as the work of a small
// layer. Tasks begin in order: when the first of the second kind does, each of the first kind has a
// thread that works on it.
template <typename Before, typename After>
Status parallel_then(int64_t count, const Before &before, int64_t next, const After &after) {
  std::atomic<int64_t> open{count};
  return parallel(count + next, 1, [&](int64_t i, int64_t) {
    if (i < count) {
      struct Closing {
        std::atomic<int64_t> &open;
        ~Closing() { open.fetch_sub(1, std::memory_order_release); }  // also if before() throws
      } closing{open};
      before(i);
      return;
    }
    while (open.load(std::memory_order_acquire) > 0) {
      std::this_thread::yield();
    }
    after(i - count);
  });
}

}  // namespace spnas
