#include "wire/disk_frame.h"

#include <cinttypes>
#include <cstring>

#include "wire/text.h"

namespace holdfast {
namespace {

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, std::move(message));
}

// Appends fields; little-endian, as the machine (frame.h asserts it).
class Writer {
 public:
  template <typename T>
  Writer& Put(T value) {
    return PutBytes(std::as_bytes(std::span(&value, 1)));
  }
  Writer& PutBytes(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// The caller has looked how much is left.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  size_t left() const { return bytes_.size(); }
  template <typename T>
  T Get() {
    T value;
    std::memcpy(&value, Take(sizeof value).data(), sizeof value);
    return value;
  }
  std::span<const std::byte> Take(size_t count) {
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }

 private:
  std::span<const std::byte> bytes_;
};

template <size_t kBytes>
std::array<std::byte, kBytes> Fixed(Writer& writer) {
  const std::vector<std::byte> bytes = writer.Take();
  std::array<std::byte, kBytes> fixed;
  HF_ASSERT(bytes.size() == kBytes);
  std::memcpy(fixed.data(), bytes.data(), kBytes);
  return fixed;
}

// Of the frames that list disks: their number, then zeros.
Result<uint32_t> TakeCount(const char* name, Reader& reader) {
  if (reader.left() < 2 * sizeof(uint32_t)) return Refused(Text("%s frame: no count", name));
  const auto count = reader.Get<uint32_t>();
  const auto zero = reader.Get<uint32_t>();
  if (count < 1 || count > kDisksMax || zero != 0) {
    return Refused(Text("%s frame: %" PRIu32 " disks, %" PRIu32 " behind it", name, count, zero));
  }
  return count;
}

Status CheckLength(const char* name, size_t expected, size_t left) {
  if (left == expected) return {};
  return Refused(Text("%s frame: %zu bytes of entries, not %zu", name, left, expected));
}

Status CheckZero(const char* name, uint32_t zero) {
  if (zero == 0) return {};
  return Refused(Text("%s frame: 0x%08" PRIx32 " where zeros belong", name, zero));
}

// Ids end up in messages and paths: printable, no separators.
bool IsDiskId(std::string_view id) {
  if (id.empty() || id.size() > kDiskIdBytesMax) return false;
  for (const char c : id) {
    if (c <= 0x20 || c >= 0x7f || c == '/') return false;
  }
  return true;
}

}  // namespace

std::vector<std::byte> EncodeDiskStates(std::span<const DiskState> states) {
  Writer writer;
  writer.Put(static_cast<uint32_t>(states.size())).Put(uint32_t{0});
  for (const DiskState& state : states) {
    HF_ASSERT(IsDiskId(state.id));
    uint16_t flags = 0;
    if (state.trusted) flags |= DiskState::kFlagTrusted;
    if (state.fresh) flags |= DiskState::kFlagFresh;
    writer.Put(state.image_bytes).Put(state.marked_blocks).PutBytes(state.sync_id);
    writer.Put(flags).Put(static_cast<uint16_t>(state.id.size())).Put(uint32_t{0});
    writer.PutBytes(std::as_bytes(std::span(state.id)));
  }
  return writer.Take();
}

Result<std::vector<DiskState>> DecodeDiskStates(std::span<const std::byte> payload) {
  static constexpr char kName[] = "DISK_STATE";
  Reader reader(payload);
  auto count = TakeCount(kName, reader);
  if (!count.ok()) return count.error();
  std::vector<DiskState> states(count.value());
  for (DiskState& state : states) {
    if (reader.left() < DiskState::kEntryBytes) return Refused(Text("%s frame: cut", kName));
    state.image_bytes = reader.Get<uint64_t>();
    state.marked_blocks = reader.Get<uint64_t>();
    state.sync_id = reader.Get<SyncId>();
    const auto flags = reader.Get<uint16_t>();
    const auto id_bytes = reader.Get<uint16_t>();
    HF_TRY(CheckZero(kName, reader.Get<uint32_t>()));
    if ((flags & ~(DiskState::kFlagTrusted | DiskState::kFlagFresh)) != 0) {
      return Refused(Text("%s frame: flags 0x%04x has unknown bits", kName, flags));
    }
    state.trusted = (flags & DiskState::kFlagTrusted) != 0;
    state.fresh = (flags & DiskState::kFlagFresh) != 0;
    if (state.image_bytes == 0 || state.marked_blocks > DiskBlocks(state.image_bytes)) {
      return Refused(Text("%s frame: %" PRIu64 " blocks marked of %" PRIu64 " bytes", kName,
                          state.marked_blocks, state.image_bytes));
    }
    if (id_bytes > reader.left()) return Refused(Text("%s frame: cut", kName));
    const auto id = reader.Take(id_bytes);
    state.id.assign(reinterpret_cast<const char*>(id.data()), id.size());
    if (!IsDiskId(state.id)) return Refused(Text("%s frame: a disk's id", kName));
  }
  HF_TRY(CheckLength(kName, 0, reader.left()));
  return states;
}

std::array<std::byte, DiskMarksBody::kBytes> EncodeDiskMarks(const DiskMarksBody& marks) {
  Writer writer;
  writer.Put(marks.disk).Put(uint32_t{0});
  return Fixed<DiskMarksBody::kBytes>(writer);
}

Result<DiskMarksBody> DecodeDiskMarks(std::span<const std::byte, DiskMarksBody::kBytes> payload) {
  Reader reader(payload);
  const DiskMarksBody marks{reader.Get<uint32_t>()};
  HF_TRY(CheckZero("DISK_MARKS", reader.Get<uint32_t>()));
  return marks;
}

std::vector<std::byte> EncodeDiskPlans(std::span<const DiskPlan> plans) {
  Writer writer;
  writer.Put(static_cast<uint32_t>(plans.size())).Put(uint32_t{0});
  for (const DiskPlan& plan : plans) {
    writer.Put(static_cast<uint32_t>(plan.what)).Put(uint32_t{0}).Put(plan.lsn);
  }
  return writer.Take();
}

Result<std::vector<DiskPlan>> DecodeDiskPlans(std::span<const std::byte> payload) {
  static constexpr char kName[] = "DISK_SYNC";
  Reader reader(payload);
  auto count = TakeCount(kName, reader);
  if (!count.ok()) return count.error();
  HF_TRY(CheckLength(kName, count.value() * DiskPlan::kEntryBytes, reader.left()));
  std::vector<DiskPlan> plans(count.value());
  for (DiskPlan& plan : plans) {
    const auto what = reader.Get<uint32_t>();
    HF_TRY(CheckZero(kName, reader.Get<uint32_t>()));
    plan.lsn = reader.Get<uint64_t>();
    plan.what = static_cast<DiskPlan::What>(what);
    if (plan.what != DiskPlan::What::kAll && plan.what != DiskPlan::What::kChanged) {
      return Refused(Text("%s frame: plan %" PRIu32 " is unknown", kName, what));
    }
  }
  return plans;
}

std::array<std::byte, DiskBaseBody::kBytes> EncodeDiskBase(const DiskBaseBody& base) {
  Writer writer;
  writer.Put(base.disk).Put(static_cast<uint32_t>(base.kind)).Put(base.offset).Put(base.length);
  return Fixed<DiskBaseBody::kBytes>(writer);
}

Result<DiskBaseBody> DecodeDiskBase(std::span<const std::byte, DiskBaseBody::kBytes> head) {
  Reader reader(head);
  DiskBaseBody base;
  base.disk = reader.Get<uint32_t>();
  const auto kind = reader.Get<uint32_t>();
  base.kind = static_cast<DiskBaseBody::Kind>(kind);
  base.offset = reader.Get<uint64_t>();
  base.length = reader.Get<uint64_t>();
  if (base.kind != DiskBaseBody::Kind::kData && base.kind != DiskBaseBody::Kind::kHole) {
    return Refused(Text("DISK_BASE frame: kind %" PRIu32 " is unknown", kind));
  }
  if (base.length == 0 || base.length > ~base.offset) {
    return Refused(Text("DISK_BASE frame: %" PRIu64 " bytes at %" PRIu64, base.length,
                        base.offset));
  }
  return base;
}

std::array<std::byte, DiskLogBody::kBytes> EncodeDiskLog(const DiskLogBody& log) {
  Writer writer;
  writer.Put(log.disk).Put(uint32_t{0}).Put(log.lsn);
  return Fixed<DiskLogBody::kBytes>(writer);
}

Result<DiskLogBody> DecodeDiskLog(std::span<const std::byte, DiskLogBody::kBytes> head) {
  Reader reader(head);
  DiskLogBody log;
  log.disk = reader.Get<uint32_t>();
  HF_TRY(CheckZero("disk's log", reader.Get<uint32_t>()));
  log.lsn = reader.Get<uint64_t>();
  return log;
}

std::vector<std::byte> EncodeDiskBoundary(std::span<const uint64_t> lsns) {
  Writer writer;
  writer.Put(static_cast<uint32_t>(lsns.size())).Put(uint32_t{0});
  return writer.PutBytes(std::as_bytes(lsns)).Take();
}

Result<std::vector<uint64_t>> DecodeDiskBoundary(std::span<const std::byte> payload) {
  Reader reader(payload);
  auto count = TakeCount("DISK_BOUNDARY", reader);
  if (!count.ok()) return count.error();
  HF_TRY(CheckLength("DISK_BOUNDARY", count.value() * sizeof(uint64_t), reader.left()));
  std::vector<uint64_t> lsns(count.value());
  for (uint64_t& lsn : lsns) lsn = reader.Get<uint64_t>();
  return lsns;
}

}  // namespace holdfast
