// The journal of one disk on the backup: a file of fixed size with the log as it
// came, and two slots that say what of it counts (docs/disk.md, "Journal").
//
//   | slot 0 | slot 1 | circle of records, `LSN % circle bytes` |
//
// A slot is written over the older one and becomes true with one sync, together
// with the records it speaks of. Whether it did is seen afterwards: its own
// digest and those of its records hold, or the other slot is the one that counts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "disk/disk_file.h"
#include "disk/disk_map.h"
#include "disk/ring_layout.h"

namespace holdfast {

// Disks that are in step.
using SetId = std::array<std::byte, 16>;

// What image, aside and journal are together.
enum class JournalState : uint32_t {
  kNone = 1,     // no checkpoint: the image is new, or a base copy is written to it
  kReplica = 2,  // the image, and the records from `applied` to `committed` on it
  kMerging = 3,  // the same on what the aside makes of the image
  kRetired = 4,  // the image has become a running VM's; the journal says nothing of it
};

struct JournalSlot {
  uint64_t round = 0;    // grows by one with each slot, in step on all disks of a set
  SetId set_id{};    // of the disks that are in step
  SyncId sync_id{};   // the synchronisation that this checkpoint descends from
  JournalState state = JournalState::kNone;
  uint64_t epoch = 0;
  uint64_t applied_lsn = 0;    // below it the image has all, on stable storage
  uint64_t committed_lsn = 0;  // the epoch's end
};

// A record that was checked, in the journal's memory.
struct JournalRecord {
  RecordHeader header;
  std::span<const std::byte> data;
};

class Journal {
 public:
  static constexpr uint64_t kSlotBytes = 4096;
  static constexpr uint64_t kCircleOffset = 2 * kSlotBytes;
  static constexpr uint64_t FileBytes(uint64_t circle_bytes) { return kCircleOffset + circle_bytes; }

  // Writes an empty journal with this first slot into the file, durably.
  static Status Format(DiskFile& file, uint64_t image_bytes, const JournalSlot& slot);

  // kDisk unless it is a sound journal of a disk of that size.
  static Result<std::unique_ptr<Journal>> Open(std::unique_ptr<DiskFile> file,
                                               uint64_t image_bytes);

  // Those that a recovery may choose from, latest first: one or two, all of
  // whose records are sound.
  std::vector<JournalSlot> SoundSlots() const;
  // The next slot goes over the other one.
  void Choose(const JournalSlot& slot);

  // One sync: of this slot, and of every record that was written before.
  Status Commit(const JournalSlot& slot);

  uint64_t circle_bytes() const { return circle_bytes_; }
  DiskFile& file() { return *file_; }

  // Where bytes at this LSN lie in the file, and how many do so in one piece.
  uint64_t OffsetOf(uint64_t lsn) const { return kCircleOffset + lsn % circle_bytes_; }
  uint64_t InOnePiece(uint64_t lsn) const { return circle_bytes_ - lsn % circle_bytes_; }
  Status Write(uint64_t lsn, std::span<const std::byte> bytes);

  // Bytes of the record at `lsn` if all of them lie before `end`; 0 if not. Its
  // head is checked once it is there, its data not.
  Result<uint64_t> RecordBytesAt(uint64_t lsn, uint64_t end) const;
  // The record that lies there completely; with `verify` its digest is checked.
  Result<JournalRecord> RecordAt(uint64_t lsn, bool verify) const;
  // What lies between can be read: looked at in memory without this, an error of
  // the disk is a signal.
  Status Readable(uint64_t from, uint64_t to) const;
  // From the circle into a file, by the kernel alone where it copies.
  Status CopyTo(DiskFile& target, uint64_t offset, uint64_t lsn, uint64_t bytes) const;

 private:
  Journal(std::unique_ptr<DiskFile> file, Mapping circle, uint64_t circle_bytes,
          uint64_t image_bytes)
      : file_(std::move(file)),
        circle_(std::move(circle)),
        circle_bytes_(circle_bytes),
        image_bytes_(image_bytes) {}

  bool RecordsAreSound(const JournalSlot& slot) const;
  const std::byte* At(uint64_t lsn) const { return circle_.data() + lsn % circle_bytes_; }

  const std::unique_ptr<DiskFile> file_;
  const Mapping circle_;  // twice, one behind the other: a record may run over the end
  const uint64_t circle_bytes_;
  const uint64_t image_bytes_;
  std::array<JournalSlot, 2> slots_{};
  std::array<bool, 2> sound_{};  // with their records
  unsigned current_ = 0;
};

}  // namespace holdfast
