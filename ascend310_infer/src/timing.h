// Durations, in milliseconds.
#ifndef SPNAS_TIMING_H_
#define SPNAS_TIMING_H_

#include <chrono>

namespace spnas {

using Clock = std::chrono::steady_clock;

inline double Milliseconds(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - start).count();
}

}  // namespace spnas

#endif  // SPNAS_TIMING_H_
