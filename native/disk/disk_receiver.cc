#include "disk/disk_receiver.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// The primary's ring has room again after so much, at the latest.
constexpr uint64_t kToldBytesMax = uint64_t{256} << 10;
// While nothing can be received, the primary is told so: it takes ten seconds of
// silence for our death.
constexpr double kIdleMs = 1'000;
constexpr int kWithheldStepMs = 5;
// Runs of a DISK_MARKS frame: its table stays below the limit.
constexpr size_t kMarksRunsMax = kTableBytesMax / kRunBytesMax;

}  // namespace

DiskReceiver::DiskReceiver(DiskSession& disks, StreamReader& reader,
                           std::shared_ptr<std::atomic<bool>> cut, Callbacks callbacks)
    : disks_(disks),
      reader_(reader),
      cut_(std::move(cut)),
      callbacks_(std::move(callbacks)),
      decoder_(disks.image_bytes()),
      received_(disks.size()),
      told_(disks.size()),
      gave_ms_(disks.size()) {}

Error DiskReceiver::Run() {
  const Status ended = Receive();
  disks_.End();
  return ended.error();
}

Status DiskReceiver::Receive() {
  HF_TRY(Greet());
  for (;;) {
    HeaderBytes bytes;
    HF_TRY(AwaitFrame());
    HF_TRY(reader_.Read(bytes, 0, nullptr));
    auto header = decoder_.Header(bytes);
    if (!header.ok()) return header.error();
    head_.resize(DiskDecoder::HeadBytes(header.value()));
    HF_TRY(reader_.Read(head_, 0, nullptr));
    HF_TRY(Handle(header.value()));
  }
}

Status DiskReceiver::Greet() {
  auto begun = disks_.Begin(cut_);
  if (!begun.ok()) return begun.error();
  HF_TRY(Send(FrameType::kDiskState, {}, EncodeDiskStates(begun.value().states)));
  RunTableWriter table;
  for (uint32_t disk = 0; disk < begun.value().marks.size(); disk++) {
    const std::vector<WireRun>& runs = begun.value().marks[disk];
    for (size_t i = 0; i < runs.size();) {
      table.Clear();
      const size_t end = std::min(runs.size(), i + kMarksRunsMax);
      for (; i < end; i++) table.Add(runs[i]);
      HF_TRY(Send(FrameType::kDiskMarks, table.bytes(), EncodeDiskMarks({disk})));
    }
  }
  return {};
}

Status DiskReceiver::Handle(const FrameHeader& header) {
  switch (header.type) {
    case FrameType::kDiskSync: {
      auto plans = decoder_.Sync(head_);
      if (!plans.ok()) return plans.error();
      for (size_t i = 0; i < received_.size(); i++) {
        received_[i] = told_[i] = plans.value()[i].lsn;
      }
      return disks_.Start(plans.value(), [this] { return StillHere(); });
    }
    case FrameType::kDiskBase: return OnBase(header);
    case FrameType::kDiskLog: return OnLog(header);
    case FrameType::kDiskSynced: {
      auto id = decoder_.Synced(head_);
      if (!id.ok()) return id.error();
      HF_TRY(disks_.Synced(id.value()));
      callbacks_.synced();
      return Send(FrameType::kDiskReady, {}, {});
    }
    case FrameType::kDiskBoundary: {
      auto lsns = decoder_.Boundary(header, head_);
      if (!lsns.ok()) return lsns.error();
      HF_TRY(disks_.Boundary(header.epoch, lsns.value()));
      return callbacks_.reached(header.epoch);
    }
    default: return Error::Of(ErrorCode::kPeerLost, DecodeError(head_).message);  // kError
  }
}

Status DiskReceiver::OnBase(const FrameHeader& header) {
  auto decoded = decoder_.Base(header, head_);
  if (!decoded.ok()) return decoded.error();
  const DiskBaseBody& base = decoded.value();
  if (base.kind == DiskBaseBody::Kind::kHole) {
    return disks_.BaseHole(base.disk, base.offset, base.length);
  }
  const int image = disks_.BaseFile(base.disk);
  if (image >= 0) {
    const FilePart part{base.offset, base.length};
    return disks_.BaseWritten(base.disk, reader_.ReadToFile(image, {&part, 1}), base.offset,
                              base.length);
  }
  data_.resize(base.length);
  HF_TRY(reader_.Read(data_, 0, nullptr));
  return disks_.BaseData(base.disk, base.offset, data_);
}

Status DiskReceiver::OnLog(const FrameHeader& header) {
  auto decoded = decoder_.Log(header, head_);
  if (!decoded.ok()) return decoded.error();
  const uint32_t disk = decoded.value().disk;
  uint64_t left = header.payload_bytes - DiskLogBody::kBytes;
  while (left > 0) {
    auto room = disks_.AwaitRoom(disk, left, [this] { return StillHere(); });
    if (!room.ok()) return room.error();
    const auto [file, offset, bytes] = room.value();
    const FilePart part{offset, bytes};
    HF_TRY(disks_.LogWritten(disk, reader_.ReadToFile(file, {&part, 1})));
    HF_TRY(disks_.Took(disk, bytes));
    left -= bytes;
    received_[disk] += bytes;
    untold_bytes_ += bytes;
  }
  // More is here already: one answer for all of it.
  if (untold_bytes_ < kToldBytesMax && reader_.buffered() >= kFrameHeaderBytes) return {};
  return TellReceived(false);
}

Status DiskReceiver::StillHere() {
  return MonotonicMs() - told_ms_ >= kIdleMs ? TellReceived(true) : Status{};
}

// Where room was withheld, the disks are looked after while nothing comes.
Status DiskReceiver::AwaitFrame() {
  while (withheld_ && !*cut_ && !reader_.AwaitBytes(kWithheldStepMs)) {
    HF_TRY(TellReceived(false));
    HF_TRY(StillHere());
  }
  return {};
}

// Of every disk that has had log since and room for more, or of all of them.
Status DiskReceiver::TellReceived(bool all) {
  untold_bytes_ = 0;
  withheld_ = false;
  for (uint32_t disk = 0; disk < told_.size(); disk++) {
    const uint64_t news = received_[disk] - told_[disk];
    if (news > 0) {
      const double now_ms = MonotonicMs();
      const uint64_t given = std::min(news, disks_.RoomToGive(disk, now_ms - gave_ms_[disk]));
      gave_ms_[disk] = now_ms;
      told_[disk] += given;
      withheld_ = withheld_ || given < news;
      if (given == 0 && !all) continue;
    } else if (!all) {
      continue;
    }
    HF_TRY(Send(FrameType::kDiskReceived, {}, EncodeDiskLog({disk, told_[disk]})));
    told_ms_ = MonotonicMs();
  }
  return {};
}

Status DiskReceiver::Send(FrameType type, std::span<const std::byte> table,
                          std::span<const std::byte> payload) {
  const HeaderBytes header =
      EncodeHeader({.type = type,
                    .table_bytes = static_cast<uint32_t>(table.size()),
                    .payload_bytes = payload.size()});
  frame_.assign(header.begin(), header.end());
  frame_.insert(frame_.end(), table.begin(), table.end());
  frame_.insert(frame_.end(), payload.begin(), payload.end());
  return callbacks_.send(frame_);
}

}  // namespace holdfast
