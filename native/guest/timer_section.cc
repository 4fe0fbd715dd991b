#include "guest/timer_section.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/result.h"

namespace holdfast {
namespace {

constexpr size_t kIdAt = 1;
constexpr size_t kNameAt = 5;
// Name, instance and version.
constexpr std::array<unsigned char, 14> kName{5, 't', 'i', 'm', 'e', 'r', 0, 0, 0, 0, 0, 0, 0, 2};
constexpr size_t kTicksAt = kNameAt + kName.size();
constexpr size_t kClockAt = kTicksAt + 16;
constexpr size_t kFooterAt = kClockAt + 8;
constexpr std::byte kFull{4};
constexpr std::byte kFooter{0x7e};
static_assert(kFooterAt + 5 == TimerSection::kBytes);

int64_t BigEndian(const std::byte* from) {
  uint64_t value = 0;
  std::memcpy(&value, from, sizeof value);
  return static_cast<int64_t>(__builtin_bswap64(value));
}

void SetBigEndian(std::byte* to, int64_t number) {
  const uint64_t value = __builtin_bswap64(static_cast<uint64_t>(number));
  std::memcpy(to, &value, sizeof value);
}

}  // namespace

std::optional<TimerSection> TimerSectionAt(std::span<const std::byte> state, size_t offset) {
  if (offset > state.size() || state.size() - offset < TimerSection::kBytes) return std::nullopt;
  const std::byte* section = state.data() + offset;
  const bool is_one = section[0] == kFull &&
                      std::memcmp(section + kNameAt, kName.data(), kName.size()) == 0 &&
                      section[kFooterAt] == kFooter &&
                      std::memcmp(section + kIdAt, section + kFooterAt + 1, 4) == 0;
  if (!is_one) return std::nullopt;
  return TimerSection{offset, {BigEndian(section + kTicksAt), BigEndian(section + kClockAt)}};
}

std::optional<TimerSection> FindTimerSection(std::span<const std::byte> state) {
  const auto name = std::as_bytes(std::span(kName));
  std::optional<TimerSection> found;
  auto from = state.begin();
  for (;;) {
    const auto at = std::search(from, state.end(), name.begin(), name.end());
    if (at == state.end()) return found;
    from = at + 1;
    const auto name_offset = static_cast<size_t>(at - state.begin());
    if (name_offset < kNameAt) continue;
    const auto section = TimerSectionAt(state, name_offset - kNameAt);
    if (!section) continue;
    if (found) return std::nullopt;
    found = section;
  }
}

void SetTime(std::span<std::byte> state, const TimerSection& section, const GuestTime& time) {
  HF_ASSERT(TimerSectionAt(state, section.offset));
  SetBigEndian(state.data() + section.offset + kTicksAt, time.ticks);
  SetBigEndian(state.data() + section.offset + kClockAt, time.clock_ns);
}

}  // namespace holdfast
