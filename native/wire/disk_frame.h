// Frames of the disk stream: bodies (docs/wire-protocol.md, "Disk stream").
//
//   primary                                                        backup
//                               ◄── DISK_STATE, then DISK_MARKS of each disk
//   DISK_SYNC                   ──►   what comes of each disk, and from which LSN
//   { DISK_BASE | DISK_LOG }    ──►   the base, beside the log
//                               ◄── DISK_RECEIVED, again and again
//   DISK_SYNCED                 ──►   the base is complete
//                               ◄── DISK_READY
//   { DISK_LOG | DISK_BOUNDARY } ─►   the log, and where epochs end in it
//
// Disks go by their index in DISK_STATE. Pure functions over spans, as in
// frame.h; what depends on the frames before is DiskDecoder's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace holdfast {

inline constexpr size_t kDisksMax = 32;
inline constexpr size_t kDiskIdBytesMax = 128;
// What a bit of a map stands for; DISK_MARKS counts in these.
inline constexpr uint64_t kDiskBlockBytes = 64 << 10;
// Data of one DISK_BASE, log of one DISK_LOG.
inline constexpr uint64_t kDiskPieceBytesMax = uint64_t{1} << 20;

// Names a moment at which two images were the same; all zero is none.
using SyncId = std::array<std::byte, 16>;

constexpr uint64_t DiskBlocks(uint64_t image_bytes) {
  return (image_bytes + kDiskBlockBytes - 1) / kDiskBlockBytes;
}

// Of DISK_STATE, for each disk.
struct DiskState {
  static constexpr size_t kHeadBytes = 8;   // the count of disks
  static constexpr size_t kEntryBytes = 40;  // and the id behind it
  static constexpr size_t kBytesMin = kHeadBytes + kEntryBytes + 1;
  static constexpr size_t kBytesMax = kHeadBytes + kDisksMax * (kEntryBytes + kDiskIdBytesMax);
  static constexpr uint16_t kFlagTrusted = 1;
  static constexpr uint16_t kFlagFresh = 2;

  std::string id{};
  uint64_t image_bytes = 0;
  SyncId sync_id{};
  bool trusted = false;        // the map knows of every write since sync_id
  bool fresh = false;          // nothing was ever written to this image
  uint64_t marked_blocks = 0;  // that DISK_MARKS frames follow for
};
std::vector<std::byte> EncodeDiskStates(std::span<const DiskState> states);
Result<std::vector<DiskState>> DecodeDiskStates(std::span<const std::byte> payload);

// DISK_MARKS: the table has runs of blocks (wire/run_table.h), the payload is this.
struct DiskMarksBody {
  static constexpr size_t kBytes = 8;
  uint32_t disk = 0;
};
std::array<std::byte, DiskMarksBody::kBytes> EncodeDiskMarks(const DiskMarksBody& marks);
Result<DiskMarksBody> DecodeDiskMarks(std::span<const std::byte, DiskMarksBody::kBytes> payload);

// Of DISK_SYNC, for each disk.
struct DiskPlan {
  static constexpr size_t kHeadBytes = 8;
  static constexpr size_t kEntryBytes = 16;
  static constexpr size_t kBytesMin = kHeadBytes + kEntryBytes;
  static constexpr size_t kBytesMax = kHeadBytes + kDisksMax * kEntryBytes;

  enum class What : uint32_t {
    kAll = 1,      // every byte of the image comes, as data or as a hole
    kChanged = 2,  // blocks that both maps do not know to be the same
  };
  What what = What::kAll;
  uint64_t lsn = 0;  // of the first byte of log
};
std::vector<std::byte> EncodeDiskPlans(std::span<const DiskPlan> plans);
Result<std::vector<DiskPlan>> DecodeDiskPlans(std::span<const std::byte> payload);

// Head of DISK_BASE's payload; the data is behind it, none of a hole.
struct DiskBaseBody {
  static constexpr size_t kBytes = 24;
  enum class Kind : uint32_t {
    kData = 1,
    kHole = 2,  // the range reads as zeros
  };
  uint32_t disk = 0;
  Kind kind = Kind::kData;
  uint64_t offset = 0;
  uint64_t length = 0;
};
std::array<std::byte, DiskBaseBody::kBytes> EncodeDiskBase(const DiskBaseBody& base);
Result<DiskBaseBody> DecodeDiskBase(std::span<const std::byte, DiskBaseBody::kBytes> head);

// Head of DISK_LOG's payload, bytes of the ring from this LSN on behind it; and
// all of DISK_RECEIVED's, where every byte below this LSN has been received.
struct DiskLogBody {
  static constexpr size_t kBytes = 16;
  uint32_t disk = 0;
  uint64_t lsn = 0;
};
std::array<std::byte, DiskLogBody::kBytes> EncodeDiskLog(const DiskLogBody& log);
Result<DiskLogBody> DecodeDiskLog(std::span<const std::byte, DiskLogBody::kBytes> head);

// DISK_BOUNDARY: the LSN of each disk; the epoch is in the header.
constexpr size_t DiskBoundaryBytes(size_t disks) { return 8 + 8 * disks; }
std::vector<std::byte> EncodeDiskBoundary(std::span<const uint64_t> lsns);
Result<std::vector<uint64_t>> DecodeDiskBoundary(std::span<const std::byte> payload);

}  // namespace holdfast
