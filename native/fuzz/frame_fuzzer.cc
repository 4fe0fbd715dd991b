// libFuzzer target: the decoder, the protocol's order and the run tables, driven
// by the calls that the receive threads make, on arbitrary bytes.
//
// The first byte chooses: bit 0 repairs header hashes and bit 1 the magic, so
// that inputs reach what lies behind them; bit 2 lets digests match; bits 3 and
// 4 are the number of streams less one. Of several streams, a byte before each
// frame says whose it is; and with bit 5 also before each table, so that a
// header of another stream comes in between. With bit 6 it is the disk stream.
// Of references, a bit of the hash says whether the disk turns out to have the page.

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "wire/digest.h"
#include "wire/disk_decoder.h"
#include "wire/disk_reference.h"
#include "wire/frame_decoder.h"
#include "wire/page_bitmap.h"
#include "wire/page_frame.h"
#include "wire/run_table.h"
#include "wire/state_delta.h"

namespace holdfast {
namespace {

constexpr uint32_t kPageSize = 4096;
constexpr uint64_t kRamPages = 1000;
constexpr uint64_t kDeviceBytesMax = 4096;
constexpr std::array<uint64_t, 3> kReferenceDisks = {uint64_t{1} << 40, 0, 3 * kPageSize + 1};
constexpr WireLimits kLimits{kPageSize, kRamPages * kPageSize, 600 * kPageSize, kDeviceBytesMax,
                             kReferenceDisks};

class Stream {
 public:
  explicit Stream(std::span<const std::byte> bytes) : bytes_(bytes) {}
  size_t left() const { return bytes_.size(); }
  std::span<const std::byte> Take(size_t count) {
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }

 private:
  std::span<const std::byte> bytes_;
};

HeaderBytes TakeHeader(Stream& stream, unsigned choice) {
  HeaderBytes head;
  std::memcpy(head.data(), stream.Take(head.size()).data(), head.size());
  if ((choice & 2) != 0) std::memcpy(head.data(), &kFrameMagic, sizeof kFrameMagic);
  if ((choice & 1) != 0) {
    const uint64_t hash = HashBytes(std::span(head).first<32>());
    std::memcpy(&head[32], &hash, sizeof hash);
  }
  return head;
}

// What the decoder let through must be safe to act on, and the only encoding
// of what it says.
void UseTable(std::span<const std::byte> bytes, const FrameHeader& header, PageBitmap& seen) {
  RunTableWriter again;
  uint64_t pages = 0;
  WireRun run;
  for (RunCursor runs(bytes); runs.Next(run);) {
    HF_ASSERT(run.pages > 0 && run.first_page + run.pages <= kRamPages);
    HF_ASSERT(seen.Add(run.first_page, run.pages));
    again.Add(run);
    pages += run.pages;
  }
  HF_ASSERT(std::ranges::equal(again.bytes(), bytes));
  if (header.type == FrameType::kPages) HF_ASSERT(header.payload_bytes == pages * kPageSize);
  if (header.type == FrameType::kReferences) {
    HF_ASSERT(header.payload_bytes == pages * DiskReference::kBytes);
  }
}

class Receiving {
 public:
  Receiving(Stream stream, unsigned choice)
      : stream_(stream), choice_(choice), streams_(1 + (choice >> 3 & 3)) {
    decoder_.NewConnection(streams_);
  }

  void Run() {
    while (stream_.left() >= kFrameHeaderBytes + 1 && Step()) {
    }
  }

 private:
  unsigned TakeIndex() {
    if (streams_ == 1) return 0;
    return std::to_integer<unsigned>(stream_.Take(1)[0]) % streams_;
  }

  // False: the connection is void.
  bool Step() {
    const unsigned index = TakeIndex();
    // A table that waited while another stream's header came.
    if (waiting_[index]) {
      waiting_[index] = false;
      return TakeTable(index);
    }
    const HeaderBytes head = TakeHeader(stream_, choice_);
    const bool idle = !decoder_.in_epoch() && !decoder_.in_round();
    auto header = decoder_.Header(index, head);
    if (!header.ok()) return false;
    const FrameHeader& frame = frames_[index] = header.value();
    HF_ASSERT(frame.table_bytes <= kTableBytesMax && frame.payload_bytes <= kPagesBytesMax);
    if (frame.type == FrameType::kBegin && idle) {
      HF_ASSERT(!decoder_.in_round() || last_committed_ == 0);
      for (PageBitmap& seen : seen_) seen.Clear();
      epoch_bytes_ = 0;
      amending_ = false;
    }
    if (frame.type == FrameType::kReferences && decoder_.in_epoch()) {
      epoch_bytes_ += frame.payload_bytes / DiskReference::kBytes * kPageSize;
      HF_ASSERT(epoch_bytes_ <= EpochBytesSentMax(kLimits));
    }
    if (frame.type == FrameType::kPages && decoder_.in_epoch()) {
      epoch_bytes_ += frame.payload_bytes;
      HF_ASSERT(epoch_bytes_ <= EpochBytesSentMax(kLimits));
    }
    HF_ASSERT(frame.slice < kSlicesMax && (frame.slice == 0 || decoder_.in_epoch()));
    if (frame.type == FrameType::kAbandon) return Abandon(index);
    if (frame.table_bytes == 0) return TakePayload(index);
    if ((choice_ & 32) == 0 || streams_ == 1) return TakeTable(index);
    waiting_[index] = true;
    return true;
  }

  bool TakeTable(unsigned index) {
    const FrameHeader& frame = frames_[index];
    if (frame.table_bytes > stream_.left()) return false;
    const auto table = stream_.Take(frame.table_bytes);
    if (!decoder_.Table(index, table).ok()) return false;
    // What is asked for again has been seen: here it comes only if it was asked for.
    if (amending_) asked_for_.Clear();
    UseTable(table, frame, amending_ ? asked_for_ : seen_[frame.slice]);
    if (frame.type == FrameType::kReferences) return TakeReferences(index, table);
    // Page bytes are not looked at: they need not be in the input.
    return true;
  }

  bool TakeReferences(unsigned index, std::span<const std::byte> table) {
    const FrameHeader& frame = frames_[index];
    if (frame.payload_bytes > stream_.left()) return false;
    const auto payload = stream_.Take(frame.payload_bytes);
    if (!decoder_.References(index, payload).ok()) return false;
    size_t at = 0;
    WireRun run;
    for (RunCursor runs(table); runs.Next(run);) {
      for (uint32_t i = 0; i < run.pages; i++, at++) {
        const DiskReference reference = ReferenceAt(payload, at);
        HF_ASSERT(reference.disk < kReferenceDisks.size());
        HF_ASSERT(reference.offset + kPageSize <= kReferenceDisks[reference.disk]);
        if ((reference.hash[0] & std::byte{1}) != std::byte{0}) {
          decoder_.Want({run.first_page + i, 1});
        }
      }
    }
    return true;
  }

  // What the receiver does when all parts have ended and pages are wanted.
  void AskAgain() {
    if (!decoder_.wanting()) return;
    auto pages = CheckRuns(decoder_.AskAgain(), kRamPages);
    HF_ASSERT(pages.ok() && pages.value() > 0);
    amending_ = true;
  }

  bool TakePayload(unsigned index) {
    const FrameHeader& frame = frames_[index];
    if (frame.payload_bytes > stream_.left()) return false;
    const auto payload = stream_.Take(frame.payload_bytes);
    switch (frame.type) {
      case FrameType::kEndRound: {
        if (!decoder_.EndPart(index, payload, 0).ok()) return false;
        AskAgain();
        return true;
      }
      case FrameType::kCommit:
      case FrameType::kEndPart: return EndPart(index, payload);
      case FrameType::kPrefixAhead: return TakePrefixAhead(payload);
      case FrameType::kPrefixKept: {
        const auto name = payload.first<PrefixName::kBytes>();
        if (!decoder_.PrefixKept(name).ok()) return false;
        HF_ASSERT(decoder_.in_epoch() && kept_prefix_ == DecodePrefixName(name));
        return true;
      }
      case FrameType::kDeviceDelta: {
        HF_ASSERT(last_committed_ > 0);
        return DecodeStateDelta(base_, payload, kDeviceBytesMax, state_).ok();
      }
      case FrameType::kError:
        HF_ASSERT(!DecodeError(payload).message.empty());
        return false;
      default: return true;
    }
  }

  bool TakePrefixAhead(std::span<const std::byte> payload) {
    std::vector<std::byte> bytes(payload.begin(), payload.end());
    const auto prefix = std::span(bytes).subspan(PrefixName::kDigestBytes);
    if ((choice_ & 4) != 0) {
      const uint64_t digest = HashBytes(prefix);
      std::memcpy(bytes.data(), &digest, sizeof digest);
    }
    auto kept = decoder_.PrefixAhead(bytes);
    if (!kept.ok()) return false;
    HF_ASSERT(decoder_.in_round() && kept.value().size() <= kDeviceBytesMax);
    HF_ASSERT(std::ranges::equal(kept.value(), prefix));
    kept_prefix_ = NameOfPrefix(prefix);
    return true;
  }

  bool Abandon(unsigned index) {
    auto given_up = decoder_.Abandon(index);
    if (!given_up.ok()) return false;
    HF_ASSERT(!given_up.value() || !decoder_.in_epoch());
    return true;
  }

  bool EndPart(unsigned index, std::span<const std::byte> payload) {
    const PartBody said = DecodePart(payload.first<PartBody::kBytes>());
    const bool in_epoch = decoder_.in_epoch();
    auto whole = decoder_.EndPart(index, payload, (choice_ & 4) != 0 ? said.digest : 0);
    if (!whole.ok()) return false;
    AskAgain();
    if (!whole.value() || !in_epoch) return true;
    HF_ASSERT(decoder_.epoch() > last_committed_);
    HF_ASSERT(decoder_.totals().pages * kPageSize == epoch_bytes_);
    last_committed_ = decoder_.epoch();
    return true;
  }

  Stream stream_;
  const unsigned choice_;
  const unsigned streams_;
  FrameDecoder decoder_{kLimits};
  std::vector<PageBitmap> seen_ = std::vector<PageBitmap>(kSlicesMax, PageBitmap(kRamPages));
  std::optional<PrefixName> kept_prefix_;
  const std::vector<std::byte> base_ = std::vector<std::byte>(1000, std::byte{1});
  std::vector<std::byte> state_;
  std::array<FrameHeader, 4> frames_;
  std::array<bool, 4> waiting_{};
  PageBitmap asked_for_{kRamPages};  // in one frame of what was asked for again
  bool amending_ = false;
  uint64_t epoch_bytes_ = 0;
  uint64_t last_committed_ = 0;
};

// The disk stream, as its receive thread drives the decoder.
void ReceiveDisks(Stream stream, unsigned choice) {
  const std::vector<uint64_t> image_bytes = {kRamPages * kPageSize, 12345};
  DiskDecoder decoder(image_bytes);
  std::vector<uint64_t> boundary(image_bytes.size());
  while (stream.left() >= kFrameHeaderBytes) {
    auto decoded = decoder.Header(TakeHeader(stream, choice));
    if (!decoded.ok()) return;
    const FrameHeader& header = decoded.value();
    HF_ASSERT(header.table_bytes == 0 && header.payload_bytes <= 2 * kDiskPieceBytesMax);
    const size_t head_bytes = DiskDecoder::HeadBytes(header);
    HF_ASSERT(head_bytes <= header.payload_bytes);
    if (head_bytes > stream.left()) return;
    const auto head = stream.Take(head_bytes);
    switch (header.type) {
      case FrameType::kDiskSync:
        if (!decoder.Sync(head).ok()) return;
        break;
      case FrameType::kDiskBase: {
        auto base = decoder.Base(header, head);
        if (!base.ok()) return;
        const DiskBaseBody& body = base.value();
        HF_ASSERT(decoder.syncing() && body.disk < image_bytes.size() && body.length > 0);
        HF_ASSERT(body.offset < image_bytes[body.disk]);
        HF_ASSERT(body.length <= image_bytes[body.disk] - body.offset);
        break;
      }
      case FrameType::kDiskLog: {
        auto log = decoder.Log(header, head);
        if (!log.ok()) return;
        HF_ASSERT(decoder.lsn(log.value().disk) > log.value().lsn);
        break;
      }
      case FrameType::kDiskSynced:
        if (!decoder.Synced(head).ok()) return;
        HF_ASSERT(decoder.shipping());
        for (uint32_t i = 0; i < boundary.size(); i++) boundary[i] = decoder.lsn(i);
        break;
      case FrameType::kDiskBoundary: {
        auto lsns = decoder.Boundary(header, head);
        if (!lsns.ok()) return;
        for (uint32_t i = 0; i < boundary.size(); i++) {
          HF_ASSERT(lsns.value()[i] >= boundary[i] && lsns.value()[i] <= decoder.lsn(i));
        }
        boundary = lsns.value();
        break;
      }
      default: HF_ASSERT(header.type == FrameType::kError); return;
    }
    // Data is not looked at: it need not be in the input.
  }
}

// What the backup says of its disks: whatever is let through can be said again.
void TryDiskStates(std::span<const std::byte> bytes) {
  auto states = DecodeDiskStates(bytes);
  if (states.ok()) HF_ASSERT(std::ranges::equal(EncodeDiskStates(states.value()), bytes));
}

// The input as a delta to a part of itself, and as two states: whatever comes of
// a delta is bounded, and what was encoded comes back.
void TryDelta(std::span<const std::byte> bytes) {
  const auto base = bytes.first(bytes.size() / 2);
  const auto rest = bytes.subspan(base.size());
  std::vector<std::byte> state;
  (void)DecodeStateDelta(base, rest, kDeviceBytesMax, state);
  HF_ASSERT(state.size() <= kDeviceBytesMax);
  std::vector<std::byte> delta;
  if (!EncodeStateDelta(base, rest, delta)) return;
  HF_ASSERT(delta.size() < rest.size());
  HF_ASSERT(DecodeStateDelta(base, delta, rest.size(), state).ok());
  HF_ASSERT(std::ranges::equal(state, rest));
}

// A list of pages in two frames, however it is cut: what is let through ascends,
// lies in RAM, and is as long as it says.
void TryPageList(std::span<const std::byte> bytes) {
  if (bytes.size() < PageListBody::kBytes) return;
  const PageListBody body = DecodePageList(bytes.first<PageListBody::kBytes>());
  const auto tables = bytes.subspan(PageListBody::kBytes);
  PageListReader reader(kRamPages);
  const auto first = reader.Add(tables.first(tables.size() / 2), body);
  if (!first.ok()) return;
  if (!first.value()) {
    const auto second = reader.Add(tables.subspan(tables.size() / 2), body);
    if (!second.ok() || !second.value()) return;
  }
  uint64_t pages = 0;
  uint64_t next_page = 0;
  for (const PageRun& run : reader.Take()) {
    HF_ASSERT(run.first_page >= next_page && run.pages > 0);
    next_page = run.first_page + run.pages;
    pages += run.pages;
  }
  HF_ASSERT(next_page <= kRamPages && pages == body.pages);
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size));
  // Handshake bodies and backward frames have no state: decode them as they are.
  if (size > holdfast::HelloBody::kBytes) {
    (void)holdfast::CheckHello(
        holdfast::DecodeHello(bytes.subspan(1).first<holdfast::HelloBody::kBytes>()));
  }
  (void)holdfast::CheckRuns(bytes.subspan(1), holdfast::kRamPages);
  holdfast::TryDelta(bytes.subspan(1));
  holdfast::TryDiskStates(bytes.subspan(1));
  (void)holdfast::CheckReferences(
      bytes.first(bytes.size() / holdfast::DiskReference::kBytes * holdfast::DiskReference::kBytes),
      holdfast::kReferenceDisks, holdfast::kPageSize);
  holdfast::TryPageList(bytes.subspan(1));
  if ((data[0] & 64) != 0) {
    holdfast::ReceiveDisks(holdfast::Stream(bytes.subspan(1)), data[0]);
    return 0;
  }
  holdfast::Receiving(holdfast::Stream(bytes.subspan(1)), data[0]).Run();
  return 0;
}
