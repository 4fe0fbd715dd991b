// The disk server's control protocol (docs/disk.md, "Disk server"; the other side
// is in lib/disk). Little-endian, as is every host of ours.
#pragma once

#include <cstdint>

namespace holdfast {

inline constexpr uint32_t kDiskControlVersion = 1;

enum class DiskRequest : uint32_t {
  kLogStart = 1,
  kLogStop = 2,
  kMapRotate = 3,
  kMapClear = 4,
  kSyncIdSet = 5,  // 16 bytes follow
  kActivate = 6,
  kBind = 7,  // value: process id of the VM
  kStats = 8,
};
inline constexpr uint32_t kDiskAnswer = 0x100;  // or'ed to the request's type
inline constexpr uint32_t kDiskHello = 0x201;   // bit 0: logging, bit 1: active; upper 32 bits: version

struct DiskMessage {
  uint32_t type = 0;
  uint32_t error = 0;  // of an answer: an errno, 0 if it was done; of others 0
  uint64_t value = 0;
};
static_assert(sizeof(DiskMessage) == 16);

enum DiskFlags : uint32_t {
  kDiskLogging = 1 << 0,
  kDiskActive = 1 << 1,
  kDiskFault = 1 << 2,    // a flush failed: every later one does
  kDiskStalled = 1 << 3,  // a writer waits for room in the log
  kDiskBound = 1 << 4,    // to a VM
};

// Follows the head of the answer to kStats. Counts are of this process.
struct DiskStats {
  uint64_t image_bytes = 0;
  uint64_t reads = 0;
  uint64_t read_bytes = 0;
  uint64_t writes = 0;
  uint64_t write_bytes = 0;
  uint64_t zeros = 0;
  uint64_t trims = 0;
  uint64_t flushes = 0;       // asked for, FUA included
  uint64_t flush_us = 0;      // of the image, together
  uint64_t flush_us_max = 0;  // of the image, one
  uint64_t stalls = 0;        // writers that found no room in the log
  uint64_t stalled_us = 0;
  uint64_t logged_bytes = 0;
  uint64_t ring_bytes = 0;
  uint64_t ring_used_bytes = 0;
  uint64_t ring_used_bytes_peak = 0;
  uint64_t marked_blocks = 0;  // of 64 KiB
  uint64_t errors = 0;         // of the image, each answered to the VM
  uint32_t last_errno = 0;
  uint32_t flags = 0;
  uint64_t flushes_early = 0;  // of `flushes`: answered before they were done
};
static_assert(sizeof(DiskStats) == 160);

}  // namespace holdfast
