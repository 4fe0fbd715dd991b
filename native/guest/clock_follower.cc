#include "guest/clock_follower.h"

#include <algorithm>

namespace holdfast {
namespace {

// A `cont` that took longer was held up, and says nothing about the next.
constexpr int64_t kContNsMax = 5'000'000;
// Share of the newest in what is expected of the next.
constexpr int64_t kContNewest = 4;

int64_t Scaled(int64_t ns, double ticks_per_ns) {
  return static_cast<int64_t>(static_cast<double>(ns) * ticks_per_ns);
}

}  // namespace

void ClockFollower::Running(const GuestTime& offset) {
  if (!anchor_) anchor_ = offset;
  if (!set_) return;
  // QEMU took `target - host` as the offset: that was when.
  const int64_t cont_ns = set_->target.clock_ns - offset.clock_ns - set_->at_ns;
  set_.reset();
  if (cont_ns < 0 || cont_ns > kContNsMax) return;
  cont_ns_ += (cont_ns - cont_ns_) / kContNewest;
}

std::optional<GuestTime> ClockFollower::Target(const GuestTime& frozen, int64_t stopped_ns,
                                               const HostClock& now) {
  set_.reset();
  const double rate = HostClock::Rate(started_, now);
  if (rate <= 0) return std::nullopt;
  if (!anchor_) {
    const int64_t since_ns = std::clamp<int64_t>(now.ns - stopped_ns, 0, kClockAdvanceNsMax);
    anchor_ = GuestTime{frozen.ticks - (now.ticks - Scaled(since_ns, rate)),
                        frozen.clock_ns - (now.ns - since_ns)};
  }
  const GuestTime wanted{anchor_->ticks + now.ticks + Scaled(cont_ns_, rate),
                         anchor_->clock_ns + now.ns + cont_ns_};
  const bool too_long =
      wanted.clock_ns - frozen.clock_ns > kClockAdvanceNsMax ||
      wanted.ticks - frozen.ticks > Scaled(kClockAdvanceNsMax, rate);
  if (too_long) {
    Forget();
    return std::nullopt;
  }
  return GuestTime{std::max(wanted.ticks, frozen.ticks),
                   std::max(wanted.clock_ns, frozen.clock_ns)};
}

void ClockFollower::Forget() {
  anchor_.reset();
  set_.reset();
}

}  // namespace holdfast
