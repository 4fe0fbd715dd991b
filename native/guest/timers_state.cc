#include "guest/timers_state.h"

#include <limits.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/host_clock.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr uint64_t kPrevBefore = 8;
constexpr size_t kSequenceAt = 8;
constexpr size_t kLockAt = 12;
constexpr size_t kEnabledAt = 16;
constexpr std::array<uint64_t, 2> kClockDistances{40, 48};
constexpr uint64_t kClockDistanceMax = 48;
// Debian's 7.2 has 4 MiB of global variables.
constexpr uint64_t kSearchedBytesMax = uint64_t{64} << 20;
// The VM stands still meanwhile: what stays in a cache is read and searched sooner.
constexpr uint64_t kSearchedAtOnceBytes = uint64_t{256} << 10;

struct Range {
  uint64_t start;
  uint64_t end;
};

template <typename T>
T At(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

Status ReadMemory(pid_t pid, uint64_t address, std::span<std::byte> to) {
  const iovec local{to.data(), to.size()};
  const iovec remote{reinterpret_cast<void*>(address), to.size()};
  const ssize_t got = ::process_vm_readv(pid, &local, 1, &remote, 1, 0);
  if (got == static_cast<ssize_t>(to.size())) return {};
  if (got >= 0) errno = EFAULT;
  return Error::FromErrno("process_vm_readv", "guest clock: reading QEMU's memory");
}

// The program's writable data and, behind them, the variables that began as zero.
Result<std::vector<Range>> GlobalVariables(pid_t pid) {
  const std::string proc = "/proc/" + std::to_string(pid);
  std::array<char, PATH_MAX> program;
  const ssize_t length = ::readlink((proc + "/exe").c_str(), program.data(), program.size());
  if (length < 0) return Error::FromErrno("readlink", "guest clock: " + proc + "/exe");
  const std::string_view name(program.data(), static_cast<size_t>(length));
  std::ifstream maps(proc + "/maps");
  if (!maps) return Error::FromErrno("open", "guest clock: " + proc + "/maps");
  std::vector<Range> ranges;
  uint64_t last_end = 0;  // of the program's mappings, writable or not
  for (std::string line; std::getline(maps, line);) {
    uint64_t start = 0, end = 0, inode = 0;
    char permissions[5] = {};
    int name_at = 0;
    const int fields = std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %*x %*s %" SCNu64 " %n",
                                   &start, &end, permissions, &inode, &name_at);
    if (fields != 4 || name_at == 0) continue;
    const std::string_view mapped = std::string_view(line).substr(static_cast<size_t>(name_at));
    // Unnamed only: the heap, too, may follow without a gap.
    const bool follows = inode == 0 && mapped.empty() && start == last_end;
    if (mapped != name && !follows) continue;
    last_end = end;
    if (std::strncmp(permissions, "rw-p", 4) != 0) continue;
    if (!ranges.empty() && ranges.back().end == start) {
      ranges.back().end = end;
    } else {
      ranges.push_back({start, end});
    }
  }
  uint64_t bytes = 0;
  for (const Range& range : ranges) bytes += range.end - range.start;
  if (bytes == 0 || bytes > kSearchedBytesMax) {
    return Error::Of(ErrorCode::kUnsupported,
                     Text("guest clock: QEMU has %" PRIu64 " bytes of global variables, "
                          "from 1 to %" PRIu64 " were expected",
                          bytes, kSearchedBytesMax));
  }
  return ranges;
}

// `bytes` begin with cpu_ticks_prev.
bool LooksStopped(std::span<const std::byte> bytes, const GuestTime& frozen,
                  uint64_t clock_distance) {
  const auto fields = bytes.subspan(kPrevBefore);
  return At<int64_t>(fields, 0) == frozen.ticks &&
         At<int64_t>(fields, clock_distance) == frozen.clock_ns &&
         At<int64_t>(bytes, 0) <= frozen.ticks && At<uint32_t>(fields, kSequenceAt) % 2 == 0 &&
         At<int32_t>(fields, kLockAt) == 0 && At<int32_t>(fields, kEnabledAt) == 0;
}

}  // namespace

Result<TimersState> TimersState::Locate(pid_t pid, const GuestTime& frozen) {
  if (!HostClock::kCountsTicks) {
    return Error::Of(ErrorCode::kUnsupported, "guest clock: not known for this host's processor");
  }
  auto ranges = GlobalVariables(pid);
  if (!ranges.ok()) return ranges.error();
  std::optional<TimersState> found;
  unsigned places = 0;
  std::vector<std::byte> memory(kSearchedAtOnceBytes);
  constexpr size_t kBytes = kPrevBefore + kClockDistanceMax + sizeof(int64_t);
  for (const Range& range : ranges.value()) {
    uint64_t start = range.start;
    while (start + kBytes <= range.end) {
      const auto bytes = std::span(memory).first(std::min(kSearchedAtOnceBytes, range.end - start));
      HF_TRY(ReadMemory(pid, start, bytes));
      size_t at = 0;
      for (; at + kBytes <= bytes.size(); at += alignof(int64_t)) {
        if (At<int64_t>(bytes, at + kPrevBefore) != frozen.ticks) continue;
        for (const uint64_t distance : kClockDistances) {
          if (!LooksStopped(bytes.subspan(at, kBytes), frozen, distance)) continue;
          places++;
          found = TimersState(pid, start + at + kPrevBefore, distance);
        }
      }
      start += at;
    }
  }
  if (places == 1) return *found;
  return Error::Of(ErrorCode::kUnsupported,
                   Text("guest clock: found at %u places in QEMU's memory instead of one", places));
}

Result<TimersState::Contents> TimersState::Read() const {
  std::array<std::byte, kClockDistanceMax + sizeof(int64_t)> memory;
  const auto fields = std::span(memory).first(clock_distance_ + sizeof(int64_t));
  HF_TRY(ReadMemory(pid_, ticks_address_, fields));
  return Contents{
      .time = {At<int64_t>(fields, 0), At<int64_t>(fields, clock_distance_)},
      .running = At<int16_t>(fields, kEnabledAt) != 0,
      .settled = At<uint32_t>(fields, kSequenceAt) % 2 == 0 && At<int32_t>(fields, kLockAt) == 0};
}

Status TimersState::Replace(const GuestTime& frozen, const GuestTime& time) const {
  const auto contents = Read();
  if (!contents.ok()) return contents.error();
  const auto& [held, running, settled] = contents.value();
  if (running || !settled || held != frozen) {
    return Error::Of(ErrorCode::kUnsupported,
                     "guest clock: QEMU does not hold what its device state says");
  }
  std::array<int64_t, 2> values{time.ticks, time.clock_ns};
  const std::array<iovec, 2> local{iovec{&values[0], 8}, iovec{&values[1], 8}};
  const std::array<iovec, 2> remote{
      iovec{reinterpret_cast<void*>(ticks_address_), 8},
      iovec{reinterpret_cast<void*>(ticks_address_ + clock_distance_), 8}};
  const ssize_t written =
      ::process_vm_writev(pid_, local.data(), local.size(), remote.data(), remote.size(), 0);
  if (written == sizeof values) return {};
  if (written >= 0) errno = EFAULT;
  return Error::FromErrno("process_vm_writev", "guest clock: writing QEMU's memory");
}

}  // namespace holdfast
