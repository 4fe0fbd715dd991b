// Clocks for measuring: elapsed time and the calling thread's CPU time.
#pragma once

#include <time.h>

namespace holdfast {

inline double ClockMs(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

inline double MonotonicMs() { return ClockMs(CLOCK_MONOTONIC); }
inline double ThreadCpuMs() { return ClockMs(CLOCK_THREAD_CPUTIME_ID); }

}  // namespace holdfast
