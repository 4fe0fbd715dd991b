#include "wire/disk_decoder.h"

#include <cinttypes>
#include <cstring>
#include <utility>

#include "wire/text.h"

namespace holdfast {
namespace {

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, std::move(message));
}

}  // namespace

DiskDecoder::DiskDecoder(std::vector<uint64_t> image_bytes)
    : image_bytes_(std::move(image_bytes)), lsns_(image_bytes_.size()) {
  HF_ASSERT(!image_bytes_.empty() && image_bytes_.size() <= kDisksMax);
}

Result<FrameHeader> DiskDecoder::Header(
    std::span<const std::byte, kFrameHeaderBytes> bytes) const {
  auto decoded = DecodeHeader(bytes, 0);
  if (!decoded.ok()) return decoded.error();
  const FrameHeader& header = decoded.value();
  const char* name = FrameName(header.type);
  bool expected = false;
  switch (header.type) {
    case FrameType::kDiskSync: expected = state_ == State::kIdle; break;
    case FrameType::kDiskBase:
    case FrameType::kDiskSynced: expected = state_ == State::kSyncing; break;
    case FrameType::kDiskLog: expected = state_ != State::kIdle; break;
    case FrameType::kDiskBoundary: expected = state_ == State::kShipping; break;
    case FrameType::kError: expected = true; break;  // ends the connection wherever it is
    default: break;
  }
  if (!expected) {
    return Refused(Text("%s frame: type %u is out of order here, on the disk stream", name,
                        static_cast<unsigned>(header.type)));
  }
  if (header.type != FrameType::kDiskBoundary && header.epoch != 0) {
    return Refused(Text("%s frame: epoch %" PRIu64 ", not 0", name, header.epoch));
  }
  return decoded;
}

size_t DiskDecoder::HeadBytes(const FrameHeader& header) {
  switch (header.type) {
    case FrameType::kDiskBase: return DiskBaseBody::kBytes;
    case FrameType::kDiskLog: return DiskLogBody::kBytes;
    default: return header.payload_bytes;
  }
}

Status DiskDecoder::CheckDisk(const char* name, uint32_t disk) const {
  if (disk < image_bytes_.size()) return {};
  return Refused(Text("%s frame: disk %" PRIu32 " of %zu", name, disk, image_bytes_.size()));
}

Status DiskDecoder::CheckCount(const char* name, size_t count) const {
  if (count == image_bytes_.size()) return {};
  return Refused(Text("%s frame: %zu disks of %zu", name, count, image_bytes_.size()));
}

Result<std::vector<DiskPlan>> DiskDecoder::Sync(std::span<const std::byte> payload) {
  auto plans = DecodeDiskPlans(payload);
  if (!plans.ok()) return plans.error();
  HF_TRY(CheckCount("DISK_SYNC", plans.value().size()));
  for (size_t i = 0; i < lsns_.size(); i++) lsns_[i] = plans.value()[i].lsn;
  state_ = State::kSyncing;
  return plans;
}

Result<DiskBaseBody> DiskDecoder::Base(const FrameHeader& header,
                                       std::span<const std::byte> head) const {
  auto base = DecodeDiskBase(head.first<DiskBaseBody::kBytes>());
  if (!base.ok()) return base.error();
  const DiskBaseBody& body = base.value();
  HF_TRY(CheckDisk("DISK_BASE", body.disk));
  if (body.offset + body.length > image_bytes_[body.disk]) {
    return Refused(Text("DISK_BASE frame: %" PRIu64 " bytes at %" PRIu64 " of %" PRIu64,
                        body.length, body.offset, image_bytes_[body.disk]));
  }
  const uint64_t data_bytes = body.kind == DiskBaseBody::Kind::kData ? body.length : 0;
  if (header.payload_bytes != DiskBaseBody::kBytes + data_bytes) {
    return Refused(Text("DISK_BASE frame: payloadBytes %" PRIu64 " for %" PRIu64 " bytes of data",
                        header.payload_bytes, data_bytes));
  }
  return base;
}

Result<DiskLogBody> DiskDecoder::Log(const FrameHeader& header, std::span<const std::byte> head) {
  auto log = DecodeDiskLog(head.first<DiskLogBody::kBytes>());
  if (!log.ok()) return log.error();
  const DiskLogBody& body = log.value();
  HF_TRY(CheckDisk("DISK_LOG", body.disk));
  if (body.lsn != lsns_[body.disk]) {
    return Refused(Text("DISK_LOG frame: LSN %" PRIu64 " of disk %" PRIu32 ", not %" PRIu64,
                        body.lsn, body.disk, lsns_[body.disk]));
  }
  const uint64_t bytes = header.payload_bytes - DiskLogBody::kBytes;
  if (bytes > ~body.lsn) return Refused("DISK_LOG frame: the last LSN");
  lsns_[body.disk] += bytes;
  return log;
}

Result<SyncId> DiskDecoder::Synced(std::span<const std::byte> payload) {
  HF_ASSERT(payload.size() == sizeof(SyncId));
  SyncId id;
  std::memcpy(id.data(), payload.data(), id.size());
  if (id == SyncId{}) return Refused("DISK_SYNCED frame: no sync id");
  state_ = State::kShipping;
  boundary_ = lsns_;
  return id;
}

Result<std::vector<uint64_t>> DiskDecoder::Boundary(const FrameHeader& header,
                                                    std::span<const std::byte> payload) {
  auto lsns = DecodeDiskBoundary(payload);
  if (!lsns.ok()) return lsns.error();
  HF_TRY(CheckCount("DISK_BOUNDARY", lsns.value().size()));
  if (header.epoch <= epoch_) {
    return Refused(Text("DISK_BOUNDARY frame: epoch %" PRIu64 " does not follow %" PRIu64,
                        header.epoch, epoch_));
  }
  for (size_t i = 0; i < lsns_.size(); i++) {
    const uint64_t lsn = lsns.value()[i];
    if (lsn < boundary_[i] || lsn > lsns_[i]) {
      return Refused(Text("DISK_BOUNDARY frame: LSN %" PRIu64 " of disk %zu is outside %" PRIu64
                          " to %" PRIu64,
                          lsn, i, boundary_[i], lsns_[i]));
    }
  }
  epoch_ = header.epoch;
  boundary_ = lsns.value();
  return lsns;
}

}  // namespace holdfast
