// Clocks for measuring: elapsed time and the calling thread's CPU time.
#pragma once

#include <time.h>

#include <cstdint>

namespace holdfast {

inline double ClockMs(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

// For time stamps that are compared with the kernel's.
inline uint64_t MonotonicNs() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

inline double MonotonicMs() { return ClockMs(CLOCK_MONOTONIC); }
inline double ThreadCpuMs() { return ClockMs(CLOCK_THREAD_CPUTIME_ID); }

}  // namespace holdfast
