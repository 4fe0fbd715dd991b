// Gives the guest back the time that our pauses take: writes into QEMU's
// memory, while the VM is stopped, what its clock shall be at `cont`.
//
//   BeforePause  VM runs: reads which offset QEMU has
//   Locate       first pause, device state saved: finds the clock in QEMU
//   Advance      right before `cont`
//
// Before every write the clock that lies in QEMU is compared with the one in
// the device state that QEMU itself wrote in this pause. One thread at a time.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "base/result.h"
#include "guest/clock_follower.h"
#include "guest/timers_state.h"

namespace holdfast {

class GuestClock {
 public:
  explicit GuestClock(pid_t pid) : pid_(pid), follower_(HostClock::Now()) {}

  struct Place {
    TimersState state;
    size_t section_offset;  // of the timer section in device states
  };
  // May take a few milliseconds; touches nothing of the object but its pid, and
  // so may run beside it. `state_path`: the device state of the pause.
  Result<Place> Locate(const std::string& state_path) const;
  void Found(Place place) { place_ = std::move(place); }
  bool located() const { return place_.has_value(); }

  // Nothing to do before it is located.
  Status BeforePause();

  // Nanoseconds by which the clock was advanced. `stopped_ns`: the host's
  // monotonic clock when QEMU said that the VM is stopped. kUnsupported where
  // something is not as expected; nothing was written then.
  Result<int64_t> Advance(const std::string& state_path, int64_t stopped_ns);

  // The VM was or will be stopped for another reason than a pause.
  void Forget() { follower_.Forget(); }

  int64_t cont_ns() const { return follower_.cont_ns(); }

 private:
  const pid_t pid_;
  std::optional<Place> place_;
  ClockFollower follower_;
};

}  // namespace holdfast
