// The guest's clock in a checkpoint that is about to be resumed.
//
//   VM stopped ── pause, sending ──► COMMIT leaves ─► it arrives ──── failure, takeover ────► state is loaded
//        │         └ the primary says how long ┘           └───── this host measures ───────┘
//        └ the clock in the device state                     both are added
//
// So the guest's clock goes on without a step, but for COMMIT's time in the
// network and the loading. The hosts' clocks need not agree.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "base/host_clock.h"

namespace holdfast {

struct CommitTime {
  HostClock arrived;
  uint64_t age_ns = 0;  // then, as COMMIT said: since the VM was stopped
};

// Nanoseconds by which the clock in `state` was advanced; nothing where it was
// left as it is: no timer section that is known, no time or more than
// kClockAdvanceNsMax, or a host whose ticks are not known.
//
// The ticks are this host's: a guest that was told its TSC's frequency by
// another host runs at ours from now on, with or without this.
std::optional<int64_t> AdvanceStandbyClock(std::span<std::byte> state, const CommitTime& commit,
                                           const HostClock& now);

}  // namespace holdfast
