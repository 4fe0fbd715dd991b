#include "disk/journal.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <vector>

#include "disk/record.h"
#include "wire/digest.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr char kJournalMagic[8] = {'H', 'F', 'D', 'J', 'R', 'N', 'L', '1'};
constexpr uint32_t kJournalVersion = 1;
constexpr uint64_t kReadBytes = uint64_t{1} << 20;
constexpr uint64_t kFileBlockBytesMin = 512;

// A slot as it lies on the disk.
struct SlotBytes {
  char magic[8];
  uint32_t version;
  uint32_t state;
  uint64_t circle_bytes;
  uint64_t image_bytes;
  uint64_t round;
  SetId set_id;
  SyncId sync_id;
  uint64_t epoch;
  uint64_t applied_lsn;
  uint64_t committed_lsn;
  uint64_t digest;  // xxh3-64 of all before it
};
static_assert(sizeof(SlotBytes) == 104 && sizeof(SlotBytes) <= Journal::kSlotBytes);

uint64_t DigestOf(const SlotBytes& bytes) {
  return HashBytes(std::as_bytes(std::span(&bytes, 1)).first(offsetof(SlotBytes, digest)));
}

std::array<std::byte, Journal::kSlotBytes> Encode(const JournalSlot& slot, uint64_t circle_bytes,
                                                  uint64_t image_bytes) {
  SlotBytes bytes{.magic = {},
                  .version = kJournalVersion,
                  .state = static_cast<uint32_t>(slot.state),
                  .circle_bytes = circle_bytes,
                  .image_bytes = image_bytes,
                  .round = slot.round,
                  .set_id = slot.set_id,
                  .sync_id = slot.sync_id,
                  .epoch = slot.epoch,
                  .applied_lsn = slot.applied_lsn,
                  .committed_lsn = slot.committed_lsn,
                  .digest = 0};
  std::memcpy(bytes.magic, kJournalMagic, sizeof bytes.magic);
  bytes.digest = DigestOf(bytes);
  std::array<std::byte, Journal::kSlotBytes> page{};
  std::memcpy(page.data(), &bytes, sizeof bytes);
  return page;
}

bool Sound(const SlotBytes& bytes) {
  return std::memcmp(bytes.magic, kJournalMagic, sizeof bytes.magic) == 0 &&
         bytes.digest == DigestOf(bytes);
}

JournalSlot Decode(const SlotBytes& bytes) {
  return {.round = bytes.round,
          .set_id = bytes.set_id,
          .sync_id = bytes.sync_id,
          .state = static_cast<JournalState>(bytes.state),
          .epoch = bytes.epoch,
          .applied_lsn = bytes.applied_lsn,
          .committed_lsn = bytes.committed_lsn};
}

Error Damaged(const DiskFile& file, std::string what) {
  return Error::Of(ErrorCode::kDisk,
                   "journal " + file.path() + ": " + std::move(what) +
                       ". Remove it to begin anew: the disk is then sent as a whole");
}

// Size and version are the same in all slots of a journal.
Status CheckSizes(const SlotBytes& bytes, const DiskFile& file, uint64_t image_bytes) {
  if (bytes.version != kJournalVersion) {
    return Damaged(file, Text("its version is %" PRIu32 ", not %" PRIu32, bytes.version,
                              kJournalVersion));
  }
  if (bytes.image_bytes != image_bytes) {
    return Damaged(file, Text("it belongs to a disk of %" PRIu64 " bytes, this one has %" PRIu64,
                              bytes.image_bytes, image_bytes));
  }
  const bool fits = bytes.circle_bytes > 0 &&
                    Journal::FileBytes(bytes.circle_bytes) == file.bytes() &&
                    bytes.circle_bytes % static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) == 0;
  if (!fits) {
    return Damaged(file, Text("it has %" PRIu64 " bytes for a circle of %" PRIu64, file.bytes(),
                              bytes.circle_bytes));
  }
  return {};
}

// The circle twice, so that what runs over its end is in one piece.
Result<Mapping> MapTwice(const DiskFile& file, uint64_t circle_bytes) {
  const auto failed = [&file] { return Error::FromErrno("mmap", "journal " + file.path()); };
  void* const both =
      ::mmap(nullptr, 2 * circle_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (both == MAP_FAILED) return failed();
  Mapping mapping(both, 2 * circle_bytes);
  for (const uint64_t lap : {uint64_t{0}, circle_bytes}) {
    void* const at = ::mmap(mapping.data() + lap, circle_bytes, PROT_READ, MAP_SHARED | MAP_FIXED,
                            file.fd(), Journal::kCircleOffset);
    if (at == MAP_FAILED) return failed();
  }
  return mapping;
}

}  // namespace

Status Journal::Format(DiskFile& file, uint64_t image_bytes, const JournalSlot& slot) {
  HF_ASSERT(file.bytes() > kCircleOffset);
  // The other slot is void: no two journals follow each other in one file.
  const std::array<std::byte, kSlotBytes> none{};
  HF_TRY(file.Write(kSlotBytes, none));
  HF_TRY(file.Write(0, Encode(slot, file.bytes() - kCircleOffset, image_bytes)));
  return file.Sync();
}

Result<std::unique_ptr<Journal>> Journal::Open(std::unique_ptr<DiskFile> file,
                                               uint64_t image_bytes) {
  std::array<JournalSlot, 2> slots{};
  std::array<bool, 2> sound{};
  uint64_t circle_bytes = 0;
  for (size_t i = 0; i < slots.size() && file->bytes() > kCircleOffset; i++) {
    SlotBytes bytes;
    HF_TRY(file->Read(i * kSlotBytes, std::as_writable_bytes(std::span(&bytes, 1))));
    if (!Sound(bytes)) continue;
    HF_TRY(CheckSizes(bytes, *file, image_bytes));
    sound[i] = true;
    slots[i] = Decode(bytes);
    circle_bytes = bytes.circle_bytes;
  }
  if (!sound[0] && !sound[1]) return Damaged(*file, "neither of its slots is sound");
  auto circle = MapTwice(*file, circle_bytes);
  if (!circle.ok()) return circle.error();
  std::unique_ptr<Journal> journal(
      new Journal(std::move(file), std::move(circle).value(), circle_bytes, image_bytes));
  journal->slots_ = slots;
  for (size_t i = 0; i < slots.size(); i++) {
    journal->sound_[i] = sound[i] && journal->RecordsAreSound(slots[i]);
  }
  if (journal->SoundSlots().empty()) {
    return Damaged(*journal->file_, "records that it says are committed are damaged");
  }
  return journal;
}

std::vector<JournalSlot> Journal::SoundSlots() const {
  std::vector<JournalSlot> found;
  for (size_t i = 0; i < slots_.size(); i++) {
    if (sound_[i]) found.push_back(slots_[i]);
  }
  std::sort(found.begin(), found.end(),
            [](const JournalSlot& a, const JournalSlot& b) { return a.round > b.round; });
  return found;
}

// Read once in the ordinary way before the mapping is looked at: an error of the
// disk is a value there, and a signal here.
Status Journal::Readable(uint64_t from, uint64_t to) const {
  std::vector<std::byte> buffer(std::min(kReadBytes, to - from));
  while (from < to) {
    const auto bytes = std::min({uint64_t{buffer.size()}, to - from, InOnePiece(from)});
    HF_TRY(file_->Read(OffsetOf(from), std::span(buffer).first(bytes)));
    from += bytes;
  }
  return {};
}

Status Journal::CopyTo(DiskFile& target, uint64_t offset, uint64_t lsn, uint64_t bytes) const {
  while (bytes > 0) {
    const uint64_t piece = std::min(bytes, InOnePiece(lsn));
    if (OffsetOf(lsn) % kFileBlockBytesMin == 0) {
      // What begins with a block some file systems share between the two files: then
      // the circle needs new space to be written again, which it had for certain.
      HF_TRY(Readable(lsn, lsn + piece));
      HF_TRY(target.Write(offset, {At(lsn), piece}));
    } else {
      HF_TRY(target.CopyFrom(*file_, OffsetOf(lsn), offset, piece));
    }
    offset += piece;
    lsn += piece;
    bytes -= piece;
  }
  return {};
}

bool Journal::RecordsAreSound(const JournalSlot& slot) const {
  const uint64_t end = slot.committed_lsn;
  if (slot.applied_lsn > end || end - slot.applied_lsn > circle_bytes_) return false;
  if (!Readable(slot.applied_lsn, end).ok()) return false;
  uint64_t at = slot.applied_lsn;
  while (at < end) {
    auto bytes = RecordBytesAt(at, end);
    if (!bytes.ok() || bytes.value() == 0) return false;
    if (!RecordAt(at, true).ok()) return false;
    at += bytes.value();
  }
  return true;
}

void Journal::Choose(const JournalSlot& slot) {
  const bool first = sound_[0] && slots_[0].round == slot.round && slots_[0].set_id == slot.set_id;
  current_ = first ? 0 : 1;
}

Status Journal::Commit(const JournalSlot& slot) {
  const unsigned next = 1 - current_;
  HF_TRY(file_->Write(next * kSlotBytes, Encode(slot, circle_bytes_, image_bytes_)));
  HF_TRY(file_->Sync());
  slots_[next] = slot;
  sound_[next] = true;
  current_ = next;
  return {};
}

Status Journal::Write(uint64_t lsn, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min<uint64_t>(bytes.size(), InOnePiece(lsn)));
    HF_TRY(file_->Write(OffsetOf(lsn), piece));
    lsn += piece.size();
    bytes = bytes.subspan(piece.size());
  }
  return {};
}

Result<uint64_t> Journal::RecordBytesAt(uint64_t lsn, uint64_t end) const {
  if (end - lsn < sizeof(RecordHeader)) return uint64_t{0};
  RecordHeader header;
  std::memcpy(&header, At(lsn), sizeof header);
  HF_TRY(CheckRecordHeader(header, lsn, image_bytes_));
  const uint64_t bytes = RecordBytes(header.kind, header.length);
  return bytes <= end - lsn ? bytes : uint64_t{0};
}

Result<JournalRecord> Journal::RecordAt(uint64_t lsn, bool verify) const {
  JournalRecord record;
  std::memcpy(&record.header, At(lsn), sizeof record.header);
  HF_TRY(CheckRecordHeader(record.header, lsn, image_bytes_));
  if (record.header.kind == RecordKind::kWrite) {
    record.data = {At(lsn) + sizeof record.header, record.header.length};
  }
  if (verify) HF_TRY(CheckRecordDigest(record.header, record.data));
  return record;
}

}  // namespace holdfast
