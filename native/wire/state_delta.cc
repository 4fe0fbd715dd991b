#include "wire/state_delta.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "wire/digest.h"
#include "wire/text.h"
#include "wire/varint.h"

namespace holdfast {
namespace {

constexpr size_t kWordBytes = sizeof(uint64_t);

struct Head {
  uint64_t state_bytes = 0;
  uint64_t digest = 0;
};
static_assert(sizeof(Head) == kStateDeltaHeadBytes);

uint64_t WordAt(std::span<const std::byte> bytes, size_t at) {
  uint64_t word;
  std::memcpy(&word, bytes.data() + at, sizeof word);
  return word;
}

// First place from `at` on at which the two differ, or where the shorter ends.
size_t NextDifference(std::span<const std::byte> a, std::span<const std::byte> b, size_t at) {
  const size_t end = std::min(a.size(), b.size());
  while (at + kWordBytes <= end && WordAt(a, at) == WordAt(b, at)) at += kWordBytes;
  while (at < end && a[at] == b[at]) at++;
  return at;
}

// End of the change that begins at `at`: before the next word's worth of equal
// bytes, for a shorter stretch costs as much to leave out as to send.
size_t EndOfChange(std::span<const std::byte> base, std::span<const std::byte> state, size_t at) {
  const size_t both = std::min(base.size(), state.size());
  size_t end = at + 1;
  for (size_t next = end; next < both;) {
    if (base[next] != state[next]) {
      end = ++next;
      continue;
    }
    if (next + kWordBytes <= both && WordAt(base, next) == WordAt(state, next)) return end;
    next++;
  }
  return state.size() > base.size() ? state.size() : end;
}

Error Refused(const char* what) {
  return Error::Of(ErrorCode::kProtocol, Text("DEVICE_DELTA frame: %s", what));
}

}  // namespace

bool EncodeStateDelta(std::span<const std::byte> base, std::span<const std::byte> state,
                      std::vector<std::byte>& delta) {
  const Head head{state.size(), HashBytes(state)};
  delta.resize(sizeof head);
  std::memcpy(delta.data(), &head, sizeof head);
  for (size_t done = 0; delta.size() < state.size();) {
    const size_t change = NextDifference(base, state, done);
    if (change == state.size()) return true;
    const size_t end = EndOfChange(base, state, change);
    PutVarint(delta, change - done);
    PutVarint(delta, end - change - 1);
    const auto changed = state.subspan(change, end - change);
    delta.insert(delta.end(), changed.begin(), changed.end());
    done = end;
  }
  return false;
}

Status DecodeStateDelta(std::span<const std::byte> base, std::span<const std::byte> delta,
                        uint64_t bytes_max, std::vector<std::byte>& state) {
  Head head;
  if (delta.size() < sizeof head) return Refused("ends within its head");
  std::memcpy(&head, delta.data(), sizeof head);
  if (head.state_bytes > bytes_max) {
    return Refused(
        Text("state bytes %" PRIu64 " exceed %" PRIu64, head.state_bytes, bytes_max).c_str());
  }
  // No more is taken than the base and the changes can fill.
  if (head.state_bytes > base.size() + delta.size()) return Refused("its state has bytes that nothing fills");
  const size_t both = std::min<uint64_t>(base.size(), head.state_bytes);
  state.assign(base.begin(), base.begin() + static_cast<ptrdiff_t>(both));
  state.resize(head.state_bytes);
  size_t filled = 0;
  for (auto rest = delta.subspan(sizeof head); !rest.empty();) {
    uint64_t unchanged = 0;
    uint64_t bytes = 0;
    if (const char* wrong = TakeVarint(rest, unchanged)) return Refused(wrong);
    if (const char* wrong = TakeVarint(rest, bytes)) return Refused(wrong);
    bytes++;
    const bool kept_is_there = filled + unchanged <= std::max(both, filled);
    if (!kept_is_there || bytes > state.size() - filled - unchanged) {
      return Refused("a change lies outside the state");
    }
    if (bytes > rest.size()) return Refused("ends within a change");
    filled += unchanged;
    std::memcpy(state.data() + filled, rest.data(), bytes);
    filled += bytes;
    rest = rest.subspan(bytes);
  }
  if (head.state_bytes > std::max(both, filled)) return Refused("its state has bytes that nothing fills");
  const uint64_t digest = HashBytes(state);
  if (digest != head.digest) {
    return Error::Of(ErrorCode::kChecksum,
                     Text("DEVICE_DELTA frame: digest 0x%016" PRIx64
                          ", but the state that it makes has 0x%016" PRIx64,
                          head.digest, digest));
  }
  return {};
}

}  // namespace holdfast
