#include "guest/standby_clock.h"

#include "guest/timer_section.h"

namespace holdfast {

std::optional<int64_t> AdvanceStandbyClock(std::span<std::byte> state, const HostClock& committed,
                                           const HostClock& now) {
  const int64_t passed_ns = now.ns - committed.ns;
  const int64_t passed_ticks = now.ticks - committed.ticks;
  if (!HostClock::kCountsTicks || passed_ns < 0 || passed_ticks < 0 ||
      passed_ns > kClockAdvanceNsMax) {
    return std::nullopt;
  }
  const auto section = FindTimerSection(state);
  if (!section) return std::nullopt;
  SetTime(state, *section,
          {section->time.ticks + passed_ticks, section->time.clock_ns + passed_ns});
  return passed_ns;
}

}  // namespace holdfast
