// The relay's control protocol (docs/relay.md; the other side is
// lib/output/relay-protocol.ts). Little-endian, as is every host of ours.
#pragma once

#include <cstdint>

namespace holdfast {

inline constexpr uint32_t kRelayControlVersion = 1;

enum class ControlType : uint32_t {
  kHold = 1,
  kBoundary = 2,
  kRelease = 3,
  kOpen = 4,
  kStats = 5,
  kPrepare = 6,
  kPause = 7,       // the target is read no more until QEMU is connected anew
  kSwitch = 8,      // QEMU's socket is emptied and connected anew; answer: 1 if it was
  kOutput = 0x200,  // event: the running epoch's first frame is held
  kHello = 0x201,   // bit 0: holding; upper 32 bits: version
};
inline constexpr uint32_t kControlAnswer = 0x100;  // or'ed to the request's type

struct ControlMessage {
  uint32_t type = 0;
  uint32_t reserved = 0;
  uint64_t value = 0;  // of an answer: frames concerned
};
static_assert(sizeof(ControlMessage) == 16);

enum RelayFlags : uint32_t {
  kRelayHolding = 1 << 0,
  kRelayQemuConnected = 1 << 1,
  kRelayTargetConnected = 1 << 2,
  kRelayStalled = 1 << 3,  // at the bound: QEMU's socket is not read
  kRelaySocketWide = 1 << 4,  // QEMU's socket was given kQemuSocketBytes
};

// Follows the head of the answer to kStats.
struct RelayStats {
  uint64_t held_frames = 0;  // in the relay now, the released ones that have not left included
  uint64_t held_bytes = 0;   // with their lengths
  uint64_t boundary_frames = 0;  // of these, what the next release lets go
  uint64_t held_bytes_peak = 0;
  uint64_t out_frames = 0;  // guest to target
  uint64_t out_bytes = 0;
  uint64_t in_frames = 0;  // target to guest
  uint64_t in_bytes = 0;
  uint64_t dropped_frames = 0;  // released, and refused by the target, or there was none
  uint32_t last_drop_errno = 0;
  uint32_t flags = 0;
  uint64_t stalled_us = 0;
  uint32_t stalls = 0;  // how often the bound was reached
  uint32_t discarded_frames = 0;  // held when QEMU's connection ended
};
static_assert(sizeof(RelayStats) == 96);

}  // namespace holdfast
