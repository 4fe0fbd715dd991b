#include "guest/standby_clock.h"

#include "guest/timer_section.h"

namespace holdfast {

std::optional<int64_t> AdvanceStandbyClock(std::span<std::byte> state, const CommitTime& commit,
                                           const HostClock& now) {
  const int64_t here_ns = now.ns - commit.arrived.ns;
  const int64_t here_ticks = now.ticks - commit.arrived.ticks;
  if (!HostClock::kCountsTicks || here_ns <= 0 || here_ticks < 0 ||
      here_ns > kClockAdvanceNsMax ||
      commit.age_ns > static_cast<uint64_t>(kClockAdvanceNsMax - here_ns)) {
    return std::nullopt;
  }
  // The primary's ticks say nothing here: its nanoseconds, at our rate.
  const auto age_ns = static_cast<int64_t>(commit.age_ns);
  const auto age_ticks = static_cast<int64_t>(static_cast<double>(age_ns) *
                                              HostClock::Rate(commit.arrived, now));
  const int64_t passed_ns = here_ns + age_ns;
  const int64_t passed_ticks = here_ticks + age_ticks;
  const auto section = FindTimerSection(state);
  if (!section) return std::nullopt;
  SetTime(state, *section,
          {section->time.ticks + passed_ticks, section->time.clock_ns + passed_ns});
  return passed_ns;
}

}  // namespace holdfast
