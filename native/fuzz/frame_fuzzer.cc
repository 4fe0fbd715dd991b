// libFuzzer target: the decoder, the protocol's order and the run tables, driven
// by the calls that the receive thread makes, on a stream of arbitrary bytes.
//
// The first byte chooses: bit 0 repairs header hashes and bit 1 the magic, so
// that inputs reach what lies behind them; bit 2 lets the digest match.

#include <algorithm>
#include <cstring>
#include <vector>

#include "wire/digest.h"
#include "wire/frame_decoder.h"
#include "wire/page_bitmap.h"
#include "wire/run_table.h"

namespace holdfast {
namespace {

constexpr uint32_t kPageSize = 4096;
constexpr uint64_t kRamPages = 1000;
constexpr WireLimits kLimits{kPageSize, kRamPages * kPageSize, 600 * kPageSize, 4096};

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

// What the decoder let through must be safe to act on.
void UseTable(std::span<const std::byte> bytes, const FrameHeader& header, bool in_epoch,
              PageBitmap& epoch_pages) {
  const RunTable table(bytes);
  uint64_t pages = 0;
  for (size_t i = 0; i < table.size(); i++) {
    const WireRun run = table[i];
    HF_ASSERT(run.pages > 0 && run.first_page + run.pages <= kRamPages);
    if (in_epoch) HF_ASSERT(epoch_pages.Add(run.first_page, run.pages));
    pages += run.pages;
  }
  if (header.type == FrameType::kPages) HF_ASSERT(header.payload_bytes == pages * kPageSize);
}

void Run(Stream stream, unsigned choice) {
  FrameDecoder decoder(kLimits);
  PageBitmap epoch_pages(kRamPages);
  uint64_t epoch_bytes = 0;
  uint64_t last_committed = 0;
  while (stream.left() >= kFrameHeaderBytes) {
    const HeaderBytes head = TakeHeader(stream, choice);
    auto header = decoder.Header(head);
    if (!header.ok()) return;
    const FrameHeader& frame = header.value();
    HF_ASSERT(frame.table_bytes <= kTableBytesMax && frame.payload_bytes <= kPagesBytesMax);
    if (frame.type == FrameType::kBegin) {
      HF_ASSERT(!decoder.in_round() || last_committed == 0);
      epoch_pages.Clear();
      epoch_bytes = 0;
    }
    if (frame.table_bytes > stream.left()) return;
    if (frame.table_bytes > 0) {
      const auto table = stream.Take(frame.table_bytes);
      if (!decoder.Table(table).ok()) return;
      UseTable(table, frame, decoder.in_epoch(), epoch_pages);
    }
    if (frame.type == FrameType::kPages && decoder.in_epoch()) {
      epoch_bytes += frame.payload_bytes;
      HF_ASSERT(epoch_bytes <= kLimits.epoch_bytes_max);
    }
    // Page bytes are not looked at: they need not be in the input.
    if (frame.type == FrameType::kPages) continue;
    if (frame.payload_bytes > stream.left()) return;
    const auto payload = stream.Take(frame.payload_bytes);
    if (frame.type == FrameType::kEndRound) {
      if (!decoder.EndRound(payload.first<PageTotals::kBytes>()).ok()) return;
    } else if (frame.type == FrameType::kCommit) {
      const auto body = payload.first<CommitBody::kBytes>();
      const uint64_t digest = (choice & 4) != 0 ? DecodeCommit(body).digest : 0;
      const uint64_t epoch = decoder.epoch();
      if (!decoder.Commit(body, digest).ok()) return;
      HF_ASSERT(epoch > last_committed);
      last_committed = epoch;
    } else if (frame.type == FrameType::kError) {
      HF_ASSERT(!DecodeError(payload).message.empty());
      return;
    }
  }
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size));
  // Handshake bodies and backward frames have no state: decode them as they are.
  if (size > holdfast::HelloBody::kBytes) {
    (void)holdfast::DecodeHello(bytes.subspan(1).first<holdfast::HelloBody::kBytes>());
  }
  holdfast::Run(holdfast::Stream(bytes.subspan(1)), data[0]);
  return 0;
}
