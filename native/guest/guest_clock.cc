#include "guest/guest_clock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "base/descriptor.h"

namespace holdfast {
namespace {

// Of a device state that the clock is looked for in.
constexpr size_t kStateBytesMax = size_t{64} << 20;

Result<Descriptor> OpenState(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return Error::FromErrno("open", "guest clock: device state " + path);
  return file;
}

// As far as the file reaches.
Result<size_t> ReadAt(int file, size_t offset, std::span<std::byte> to) {
  size_t done = 0;
  while (done < to.size()) {
    const ssize_t got = ::pread(file, to.data() + done, to.size() - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::FromErrno("pread", "guest clock: device state");
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

Error NoSection() {
  return Error::Of(ErrorCode::kUnsupported,
                   "guest clock: no timer section as it is known, or several, in the device state");
}

Result<TimerSection> FindSection(const std::string& path) {
  const auto file = OpenState(path);
  if (!file.ok()) return file.error();
  struct stat status {};
  if (::fstat(file.value().get(), &status) != 0) {
    return Error::FromErrno("fstat", "guest clock: device state " + path);
  }
  std::vector<std::byte> state(std::min(static_cast<size_t>(status.st_size), kStateBytesMax));
  const auto bytes = ReadAt(file.value().get(), 0, state);
  if (!bytes.ok()) return bytes.error();
  const auto section = FindTimerSection(std::span(state).first(bytes.value()));
  if (!section) return NoSection();
  return *section;
}

// QEMU writes its sections in an order that hotplug can change, hardly ever
// before this one: it is looked for anew only where it is not any more.
Result<TimerSection> ReadSection(const std::string& path, size_t offset) {
  const auto file = OpenState(path);
  if (!file.ok()) return file.error();
  std::array<std::byte, TimerSection::kBytes> section;
  const auto bytes = ReadAt(file.value().get(), offset, section);
  if (!bytes.ok()) return bytes.error();
  const auto found = TimerSectionAt(std::span(section).first(bytes.value()), 0);
  if (!found) return FindSection(path);
  return TimerSection{offset, found->time};
}

}  // namespace

Result<GuestClock::Place> GuestClock::Locate(const std::string& state_path) const {
  const auto section = FindSection(state_path);
  if (!section.ok()) return section.error();
  const auto state = TimersState::Locate(pid_, section.value().time);
  if (!state.ok()) return state.error();
  return Place{state.value(), section.value().offset};
}

Status GuestClock::BeforePause() {
  if (!place_) return {};
  const auto contents = place_->state.Read();
  if (!contents.ok()) return contents.error();
  const auto& [time, running, settled] = contents.value();
  if (running && settled) follower_.Running(time);
  return {};
}

Result<int64_t> GuestClock::Advance(const std::string& state_path, int64_t stopped_ns) {
  HF_ASSERT(place_);
  const auto section = ReadSection(state_path, place_->section_offset);
  if (!section.ok()) return section.error();
  place_->section_offset = section.value().offset;
  const GuestTime frozen = section.value().time;
  const HostClock now = HostClock::Now();
  const auto target = follower_.Target(frozen, stopped_ns, now);
  if (!target) return 0;
  HF_TRY(place_->state.Replace(frozen, *target));
  follower_.Advanced(*target, now);
  return target->clock_ns - frozen.clock_ns;
}

}  // namespace holdfast
