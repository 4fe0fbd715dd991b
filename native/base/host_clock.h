// The two clocks of the host from which QEMU makes the guest's: nanoseconds of
// CLOCK_MONOTONIC, and the CPU's cycle counter (cpu_get_host_ticks()).
#pragma once

#include <time.h>

#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace holdfast {

struct HostClock {
#if defined(__x86_64__)
  static constexpr bool kCountsTicks = true;
  static int64_t Ticks() { return static_cast<int64_t>(__rdtsc()); }
#else
  // QEMU takes another counter on every architecture; none but this was tried.
  static constexpr bool kCountsTicks = false;
  static int64_t Ticks() { return 0; }
#endif

  int64_t ns = 0;
  int64_t ticks = 0;

  static HostClock Now() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return {now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec, Ticks()};
  }

  // Ticks per nanosecond between two readings, `earlier` first; 0 of no time.
  static double Rate(const HostClock& earlier, const HostClock& later) {
    if (later.ns <= earlier.ns) return 0;
    return static_cast<double>(later.ticks - earlier.ticks) /
           static_cast<double>(later.ns - earlier.ns);
  }
};

// What is longer is no pause any more but an outage. The guest then goes on
// where it stopped, as QEMU has it after `stop` and `cont`: jumped over, all of
// its timers would fire at once, and its watchdogs with them.
inline constexpr int64_t kClockAdvanceNsMax = 10'000'000'000;

}  // namespace holdfast
