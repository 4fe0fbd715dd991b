// What the kernel's scheduler did, as it goes to JavaScript: 24 bytes, little
// endian. lib/trace/sched-events.ts reads this layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast {

enum class SchedKind : uint16_t {
  kSwitch = 1,   // first: thread that leaves; second: thread that comes; third: the former's state
  kMigrate = 2,  // first: thread; second: core that it was on; third: core that it goes to
  kWakeup = 3,   // first: thread; third: core on which it will run
  kLost = 4,     // third: so many events of this core are missing here
};

struct SchedEvent {
  uint64_t time_ns = 0;  // CLOCK_MONOTONIC
  SchedKind kind = SchedKind::kLost;
  uint16_t core = 0;  // where it was recorded
  int32_t first = 0;
  int32_t second = 0;
  uint32_t third = 0;
};
static_assert(sizeof(SchedEvent) == 24);
static_assert(offsetof(SchedEvent, third) == 20);

}  // namespace holdfast
