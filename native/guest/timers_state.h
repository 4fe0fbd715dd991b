// QEMU's `timers_state`, the global variable that holds the guest's clock, in
// the memory of its process.
//
//   timers_state (cpu-timers.c; QEMU 7.2 to 10.0)      from cpu_ticks_offset
//     int64_t  cpu_ticks_prev                            -8
//     int64_t  cpu_ticks_offset                           0   ticks while stopped
//     unsigned vm_clock_seqlock                           8   odd: being written
//     int      vm_clock_lock                             12   0: free
//     int16_t  cpu_ticks_enabled                         16   0: stopped
//     int16_t  icount_time_shift                         18
//     …                                                       two or three words
//     int64_t  cpu_clock_offset                     40 or 48  virtual clock while stopped
//
// Nobody says where it is: it is found by what it holds while the VM is
// stopped, which the device state says, and by this layout.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/result.h"
#include "guest/timer_section.h"

namespace holdfast {

class TimersState {
 public:
  // Searches QEMU's global variables, of which there are a few MiB, while the
  // VM is stopped at `frozen`. kUnsupported if it is not found, or more than once.
  static Result<TimersState> Locate(pid_t pid, const GuestTime& frozen);

  struct Contents {
    GuestTime time;
    bool running = false;
    bool settled = false;  // nobody is changing it
  };
  Result<Contents> Read() const;

  // Writes `time` where `frozen` is, and nothing if that is not there, or the
  // VM not stopped, or QEMU at work on it: kUnsupported.
  Status Replace(const GuestTime& frozen, const GuestTime& time) const;

 private:
  TimersState(pid_t pid, uint64_t ticks_address, uint64_t clock_distance)
      : pid_(pid), ticks_address_(ticks_address), clock_distance_(clock_distance) {}

  pid_t pid_;
  uint64_t ticks_address_;
  uint64_t clock_distance_;
};

}  // namespace holdfast
