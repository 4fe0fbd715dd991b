// The section of a device state that carries the guest's clock.
//
//   04 │ id │ 05 "timer" │ instance 0 │ version 2 │ ticks │ unused │ clock │ 7e │ id
//   1    4    6            4            4           8       8        8       1    4
//
// vmstate_timers in QEMU's cpu-timers.c; integers are big-endian. Both values
// are those at which the VM was stopped. With -icount a subsection follows,
// and the clock is made in another way: that is not recognized, on purpose.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace holdfast {

// The guest's clock: cycles of its TSC, and nanoseconds of QEMU's virtual clock.
struct GuestTime {
  int64_t ticks = 0;
  int64_t clock_ns = 0;
  bool operator==(const GuestTime&) const = default;
};

struct TimerSection {
  static constexpr size_t kBytes = 48;
  size_t offset = 0;  // in the device state
  GuestTime time;
};

// The section that begins at `offset`, if it is one.
std::optional<TimerSection> TimerSectionAt(std::span<const std::byte> state, size_t offset);

// Looks for it. Also nothing where several look like it: a guest decides what
// some of the device state's bytes are, and may not choose by that.
std::optional<TimerSection> FindTimerSection(std::span<const std::byte> state);

// Writes another time into the section.
void SetTime(std::span<std::byte> state, const TimerSection& section, const GuestTime& time);

}  // namespace holdfast
