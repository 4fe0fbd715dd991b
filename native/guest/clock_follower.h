// To where the guest's clock is set at the end of a pause. Pure.
//
// While the VM runs its clock is an offset to the host's, and QEMU takes a new
// one at each `cont`, without the time since `stop`:
//
//   guest = offset + host                 VM runs
//   guest = frozen                        VM is stopped
//   offset = frozen - host                at `cont`
//
// The anchor is the offset that the guest had before our first pause. At each
// pause the clock is set to anchor + host, so what one pause gets wrong does
// not add up: the next one puts it right.
#pragma once

#include <cstdint>
#include <optional>

#include "base/host_clock.h"
#include "guest/timer_section.h"

namespace holdfast {

class ClockFollower {
 public:
  explicit ClockFollower(const HostClock& started) : started_(started) {}

  // The VM runs, with this offset: the anchor, if there is none; and how long
  // the last `cont` took.
  void Running(const GuestTime& offset);

  // The VM is stopped since the host's `stopped_ns`. Nothing: leave it as it is.
  // Never less than `frozen`.
  std::optional<GuestTime> Target(const GuestTime& frozen, int64_t stopped_ns,
                                  const HostClock& now);

  // The target was set, `now` as it was given to Target.
  void Advanced(const GuestTime& target, const HostClock& now) { set_ = Set{target, now.ns}; }

  // The VM stood still for a reason that is not a pause of ours: that time is
  // the guest's loss, as without us, and from now on another anchor holds.
  void Forget();

  // From the write to the moment at which the clock runs again, as learnt.
  int64_t cont_ns() const { return cont_ns_; }

 private:
  struct Set {
    GuestTime target;
    int64_t at_ns;
  };

  const HostClock started_;
  std::optional<GuestTime> anchor_;  // offset
  std::optional<Set> set_;
  int64_t cont_ns_ = 100'000;
};

}  // namespace holdfast
