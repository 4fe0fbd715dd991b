// The guest's clock in a checkpoint that is about to be resumed.
//
//   VM stopped ── transit ──► COMMIT arrives ──── failure, detection, takeover ────► state is loaded
//        │                          └──────────── this is added ─────────────────────────┘
//        └ the clock in the device state
//
// So the guest's clock goes on without a step, but for the transit.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "base/host_clock.h"

namespace holdfast {

// Nanoseconds by which the clock in `state` was advanced; nothing where it was
// left as it is: no timer section that is known, more time than
// kClockAdvanceNsMax, or a host whose ticks are not known.
//
// The ticks are this host's: a guest that was told its TSC's frequency by
// another host runs at ours from now on, with or without this.
std::optional<int64_t> AdvanceStandbyClock(std::span<std::byte> state, const HostClock& committed,
                                           const HostClock& now);

}  // namespace holdfast
