// What the backup may be sent on the disk stream, and when: a pure state
// machine over its frames, as FrameDecoder is over those of the others.
//
//   Idle ── DISK_SYNC ──► Syncing ─┐ DISK_BASE DISK_LOG
//                            │  ◄──┘
//                            └── DISK_SYNCED ──► Shipping ─┐ DISK_LOG DISK_BOUNDARY
//                                                      ◄───┘
//
// The caller reads a header, then so much of the payload as HeadBytes() says
// (the rest of DISK_BASE and DISK_LOG is data), and shows both before it acts on
// them. That DISK_BASE of a disk and DISK_SYNCED come between records, not in
// the middle of one, is not looked at here: records are their reader's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "wire/disk_frame.h"
#include "wire/frame.h"

namespace holdfast {

class DiskDecoder {
 public:
  // The images' sizes, by disk.
  explicit DiskDecoder(std::vector<uint64_t> image_bytes);

  // Every frame after the handshake.
  Result<FrameHeader> Header(std::span<const std::byte, kFrameHeaderBytes> bytes) const;

  // Of the payload: what is shown to the calls below.
  static size_t HeadBytes(const FrameHeader& header);

  Result<std::vector<DiskPlan>> Sync(std::span<const std::byte> payload);
  Result<DiskBaseBody> Base(const FrameHeader& header, std::span<const std::byte> head) const;
  // Log bytes that follow; from here they count as received.
  Result<DiskLogBody> Log(const FrameHeader& header, std::span<const std::byte> head);
  Result<SyncId> Synced(std::span<const std::byte> payload);
  // The boundary's LSNs: all of them have come, and none is below the last one's.
  Result<std::vector<uint64_t>> Boundary(const FrameHeader& header,
                                         std::span<const std::byte> payload);

  bool syncing() const { return state_ == State::kSyncing; }
  bool shipping() const { return state_ == State::kShipping; }
  size_t disks() const { return image_bytes_.size(); }
  // The LSN behind the log that has come of a disk.
  uint64_t lsn(uint32_t disk) const { return lsns_[disk]; }

 private:
  enum class State { kIdle, kSyncing, kShipping };

  Status CheckDisk(const char* name, uint32_t disk) const;
  Status CheckCount(const char* name, size_t count) const;

  const std::vector<uint64_t> image_bytes_;
  State state_ = State::kIdle;
  std::vector<uint64_t> lsns_;      // by disk
  std::vector<uint64_t> boundary_;  // the last one
  uint64_t epoch_ = 0;              // of it
};

}  // namespace holdfast
