// One pass per batch of runs: classify pages (zero or not), then frames. What
// is in a table is decided before any of its bytes is hashed or sent.

#include "send/epoch_writer.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <utility>

#include "base/clock.h"
#include "send/page_sender.h"
#include "send/stream_socket.h"
#include "send/zero_page.h"
#include "wire/digest.h"
#include "wire/frame.h"
#include "wire/run_table.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// Payload of one PAGES frame: small enough that the first bytes leave while
// most pages are still to be classified, large enough that headers are noise.
constexpr uint64_t kFrameBytesMax = uint64_t{4} << 20;
// Hashed and handed to the kernel piece by piece, while in the CPU's cache.
constexpr uint64_t kPieceBytes = uint64_t{512} << 10;
constexpr size_t kZeroRunsMax = 8192;
// An ERROR frame that explains a failed send is here by then, or it was lost.
constexpr int kExplainMs = 200;

static_assert(kFrameBytesMax <= kPagesBytesMax);
static_assert(kFrameBytesMax / 4096 * kRunBytes <= kTableBytesMax);
static_assert(kZeroRunsMax * kRunBytes <= kTableBytesMax);

iovec Part(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

// A table under construction; neighbouring runs merge.
class TableBuilder {
 public:
  void Add(uint64_t page) {
    if (!runs_.empty() && runs_.back().first_page + runs_.back().pages == page) {
      runs_.back().pages++;
    } else {
      runs_.push_back({page, 1});
    }
    pages_++;
  }
  void Clear() {
    runs_.clear();
    pages_ = 0;
  }
  uint64_t pages() const { return pages_; }
  size_t runs() const { return runs_.size(); }
  std::span<const std::byte> Encode() {
    bytes_.resize(runs_.size() * kRunBytes);
    for (size_t i = 0; i < runs_.size(); i++) EncodeRun(&bytes_[i * kRunBytes], runs_[i]);
    return bytes_;
  }

 private:
  std::vector<WireRun> runs_;
  std::vector<std::byte> bytes_;
  uint64_t pages_ = 0;
};

}  // namespace

struct EpochWriter::Impl {
  enum class Phase { kBetween, kRound, kEpoch, kSealed, kCommitted };

  Impl(StreamSocket connected, const Hello& hello, Strategy chosen)
      : socket(std::move(connected)),
        sender(PageSender::Make(chosen)),
        strategy(chosen),
        page_size(hello.page_size),
        ram_pages(hello.ram_bytes / hello.page_size) {}

  Status Handshake(const Hello& hello, int timeout_ms);
  Status Begin(Phase next, uint64_t number);
  Status Pages(const PageSource& source, std::span<const PageRun> runs);
  Status FlushPages(const PageSource& source);
  Status FlushZero();
  Status SendPieces(const PageSource& source);
  Status SendExtents(const PageSource& source, std::span<const Extent> part);
  Status SendFrame(FrameHeader header, std::span<const std::byte> table,
                   std::span<const std::byte> payload, bool more);
  Result<FrameHeader> Await(FrameType type, std::span<std::byte> body, int timeout_ms);
  Error Explain(Error error);

  StreamSocket socket;
  std::unique_ptr<PageSender> sender;
  const Strategy strategy;
  const uint32_t page_size;
  const uint64_t ram_pages;

  Phase phase = Phase::kBetween;
  uint64_t epoch = 0;
  bool refused = false;    // the peer sent ERROR
  uint64_t next_page = 0;  // runs ascend over a whole epoch or round
  Digest digest;
  SendCounters counters;
  uint64_t syscalls_before = 0;

  TableBuilder pages;
  TableBuilder zeros;
  std::vector<Extent> extents;  // of the pages in `pages`, same order
};

Status EpochWriter::Impl::SendFrame(FrameHeader header, std::span<const std::byte> table,
                                    std::span<const std::byte> payload, bool more) {
  header.epoch = epoch;
  header.table_bytes = static_cast<uint32_t>(table.size());
  if (header.type != FrameType::kPages) header.payload_bytes = payload.size();
  const HeaderBytes head = EncodeHeader(header);
  iovec parts[3] = {Part(head)};
  size_t count = 1;
  if (!table.empty()) parts[count++] = Part(table);
  if (!payload.empty()) parts[count++] = Part(payload);
  Status sent = socket.SendAll(std::span(parts).first(count), more);
  if (!sent.ok()) return Explain(sent.error());
  counters.bytes += head.size() + table.size() + payload.size();
  return {};
}

// Reads one frame of the backward direction: the awaited one, or an error.
Result<FrameHeader> EpochWriter::Impl::Await(FrameType type, std::span<std::byte> body,
                                             int timeout_ms) {
  HeaderBytes head;
  HF_TRY(socket.ReceiveAll(head, timeout_ms));
  auto header = DecodeHeader(head, 0);
  if (!header.ok()) return header.error();
  const FrameHeader& got = header.value();
  if (got.type == FrameType::kError) {
    std::array<std::byte, kErrorBytesMax> text;
    const auto payload = std::span(text).first(got.payload_bytes);
    HF_TRY(socket.ReceiveAll(payload, timeout_ms));
    refused = true;
    return DecodeError(payload);
  }
  if (got.type != type) {
    return Error::Of(ErrorCode::kProtocol, Text("%s frame instead of %s", FrameName(got.type),
                                                FrameName(type)));
  }
  HF_ASSERT(got.payload_bytes == body.size());
  HF_TRY(socket.ReceiveAll(body, timeout_ms));
  return header;
}

// A peer that refuses says why before it closes: its words beat our errno.
Error EpochWriter::Impl::Explain(Error error) {
  if (error.code != ErrorCode::kPeerLost || error.sys_errno == ETIMEDOUT) return error;
  auto said = Await(FrameType::kError, {}, kExplainMs);
  return !said.ok() && refused ? said.error() : error;
}

Status EpochWriter::Impl::Handshake(const Hello& hello, int timeout_ms) {
  HelloBody body;
  body.page_size = hello.page_size;
  body.ram_bytes = hello.ram_bytes;
  body.token = hello.token;
  HF_TRY(SendFrame({.type = FrameType::kHello}, {}, EncodeHello(body), false));
  std::array<std::byte, HelloOkBody::kBytes> ok;
  auto header = Await(FrameType::kHelloOk, ok, timeout_ms);
  if (!header.ok()) {
    Error error = header.error();
    if (error.sys_errno == ETIMEDOUT) error.code = ErrorCode::kConnect;
    return error;
  }
  const uint32_t version = DecodeHelloOk(ok).version;
  if (version != kWireVersion) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("HELLO_OK frame: version %" PRIu32 ", not %" PRIu32, version,
                          kWireVersion));
  }
  return {};
}

Status EpochWriter::Impl::Begin(Phase next, uint64_t number) {
  HF_ASSERT(phase == Phase::kBetween);
  phase = next;
  epoch = number;
  next_page = 0;
  counters = {};
  syscalls_before = socket.syscalls();
  digest.Reset();
  if (strategy == Strategy::kSendfile) socket.SetCork(true);
  FrameHeader header{.type = FrameType::kBegin};
  if (next == Phase::kRound) header.flags = kFlagBase;
  return SendFrame(header, {}, {}, true);
}

Status EpochWriter::Impl::Pages(const PageSource& source, std::span<const PageRun> runs) {
  for (const PageRun& run : runs) {
    HF_ASSERT(run.pages > 0 && run.first_page >= next_page);
    HF_ASSERT(run.first_page + run.pages <= ram_pages);
    HF_ASSERT((run.source_page + run.pages) * page_size <= source.size);
    next_page = run.first_page + run.pages;
    for (uint32_t i = 0; i < run.pages; i++) {
      const uint64_t offset = (run.source_page + i) * page_size;
      if (IsZeroPage(source.base + offset, page_size)) {
        zeros.Add(run.first_page + i);
        if (zeros.runs() == kZeroRunsMax) HF_TRY(FlushZero());
        continue;
      }
      pages.Add(run.first_page + i);
      if (!extents.empty() && extents.back().offset + extents.back().bytes == offset) {
        extents.back().bytes += page_size;
      } else {
        extents.push_back({offset, page_size});
      }
      if ((pages.pages() + 1) * page_size > kFrameBytesMax) HF_TRY(FlushPages(source));
    }
  }
  HF_TRY(FlushPages(source));
  return FlushZero();
}

Status EpochWriter::Impl::FlushZero() {
  if (zeros.pages() == 0) return {};
  const auto table = zeros.Encode();
  if (phase == Phase::kEpoch) digest.Update(table);
  HF_TRY(SendFrame({.type = FrameType::kZero}, table, {}, true));
  counters.zero_pages += zeros.pages();
  zeros.Clear();
  return {};
}

Status EpochWriter::Impl::FlushPages(const PageSource& source) {
  if (pages.pages() == 0) return {};
  const auto table = pages.Encode();
  if (phase == Phase::kEpoch) digest.Update(table);
  const uint64_t bytes = pages.pages() * page_size;
  HF_TRY(SendFrame({.type = FrameType::kPages, .payload_bytes = bytes}, table, {}, true));
  HF_TRY(SendPieces(source));
  counters.pages += pages.pages();
  counters.bytes += bytes;
  pages.Clear();
  extents.clear();
  return {};
}

// Cuts the frame's extents into pieces, hashes each and sends it.
Status EpochWriter::Impl::SendPieces(const PageSource& source) {
  size_t first = 0;
  while (first < extents.size()) {
    uint64_t bytes = 0;
    size_t end = first;
    while (end < extents.size() && bytes + extents[end].bytes <= kPieceBytes) {
      bytes += extents[end++].bytes;
    }
    if (end > first) {
      HF_TRY(SendExtents(source, std::span(extents).subspan(first, end - first)));
      first = end;
      continue;
    }
    const Extent head{extents[first].offset, kPieceBytes};
    extents[first].offset += kPieceBytes;
    extents[first].bytes -= kPieceBytes;
    HF_TRY(SendExtents(source, std::span(&head, 1)));
  }
  return {};
}

Status EpochWriter::Impl::SendExtents(const PageSource& source, std::span<const Extent> part) {
  if (phase == Phase::kEpoch) {
    for (const Extent& extent : part) digest.Update({source.base + extent.offset, extent.bytes});
  }
  Status sent = sender->Send(source, part, socket);
  if (!sent.ok() && sent.error().code == ErrorCode::kUnsupported) {
    // hugetlbfs files can be neither spliced nor sent by sendfile.
    sender = MakeCopySender();
    sent = sender->Send(source, part, socket);
  }
  if (!sent.ok()) return Explain(sent.error());
  return {};
}

EpochWriter::EpochWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
// What was committed has been acknowledged; anything else must not arrive any more.
EpochWriter::~EpochWriter() {
  if (impl_ != nullptr) impl_->socket.AbortOnClose();
}

Result<std::unique_ptr<EpochWriter>> EpochWriter::Connect(const std::string& host, uint16_t port,
                                                          const Hello& hello, Strategy strategy,
                                                          int timeout_ms,
                                                          const CancelSignal& cancel) {
  HF_ASSERT(hello.page_size >= 4096 && hello.page_size % 4096 == 0);
  HF_ASSERT(hello.page_size <= kFrameBytesMax && hello.ram_bytes % hello.page_size == 0);
  const double started = MonotonicMs();
  auto socket = StreamSocket::Dial(host, port, timeout_ms, cancel);
  if (!socket.ok()) return socket.error();
  auto impl = std::make_unique<Impl>(StreamSocket(std::move(socket).value(), cancel), hello,
                                     strategy);
  const double left = timeout_ms - (MonotonicMs() - started);
  HF_TRY(impl->Handshake(hello, std::max(1, static_cast<int>(left))));
  return std::unique_ptr<EpochWriter>(new EpochWriter(std::move(impl)));
}

Status EpochWriter::BeginRound() { return impl_->Begin(Impl::Phase::kRound, 0); }

Status EpochWriter::BeginEpoch(uint64_t epoch) {
  HF_ASSERT(epoch >= 1 && epoch <= kEpochMax);
  return impl_->Begin(Impl::Phase::kEpoch, epoch);
}

Status EpochWriter::Pages(const PageSource& source, std::span<const PageRun> runs, bool stable) {
  // Only what cannot change may be hashed, and an epoch is hashed throughout.
  HF_ASSERT(impl_->phase == (stable ? Impl::Phase::kEpoch : Impl::Phase::kRound));
  return impl_->Pages(source, runs);
}

Status EpochWriter::Prefix(std::span<const std::byte> bytes) {
  HF_ASSERT(impl_->phase == Impl::Phase::kEpoch);
  impl_->digest.Update(bytes);
  return impl_->SendFrame({.type = FrameType::kPrefix}, {}, bytes, true);
}

Status EpochWriter::Device(std::span<const std::byte> bytes) {
  HF_ASSERT(impl_->phase == Impl::Phase::kEpoch);
  impl_->phase = Impl::Phase::kSealed;
  impl_->digest.Update(bytes);
  return impl_->SendFrame({.type = FrameType::kDevice}, {}, bytes, true);
}

Status EpochWriter::EndRound() {
  HF_ASSERT(impl_->phase == Impl::Phase::kRound);
  const PageTotals totals{impl_->counters.pages, impl_->counters.zero_pages};
  HF_TRY(impl_->SendFrame({.type = FrameType::kEndRound}, {}, EncodeTotals(totals), false));
  if (impl_->strategy == Strategy::kSendfile) impl_->socket.SetCork(false);
  auto header = impl_->Await(FrameType::kRoundOk, {}, kPeerSilenceMsMax);
  if (!header.ok()) return header.error();
  impl_->phase = Impl::Phase::kBetween;
  return {};
}

Status EpochWriter::Commit() {
  HF_ASSERT(impl_->phase == Impl::Phase::kSealed);
  impl_->phase = Impl::Phase::kCommitted;
  const CommitBody body{{impl_->counters.pages, impl_->counters.zero_pages},
                        impl_->digest.Value()};
  HF_TRY(impl_->SendFrame({.type = FrameType::kCommit}, {}, EncodeCommit(body), false));
  if (impl_->strategy == Strategy::kSendfile) impl_->socket.SetCork(false);
  return {};
}

Result<EpochWriter::Ack> EpochWriter::AwaitAck(uint64_t epoch) {
  HF_ASSERT(impl_->phase == Impl::Phase::kCommitted && epoch == impl_->epoch);
  std::array<std::byte, AckBody::kBytes> body;
  auto header = impl_->Await(FrameType::kAck, body, kPeerSilenceMsMax);
  if (!header.ok()) return header.error();
  // An acknowledgement of another epoch must never release this one's output.
  if (header.value().epoch != epoch) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("ACK frame: epoch %" PRIu64 ", not %" PRIu64, header.value().epoch,
                          epoch));
  }
  impl_->phase = Impl::Phase::kBetween;
  const uint64_t apply_us = DecodeAck(body).last_apply_us;
  return Ack{apply_us > INT64_MAX ? -1 : static_cast<int64_t>(apply_us)};
}

const SendCounters& EpochWriter::counters() const {
  impl_->counters.syscalls = impl_->socket.syscalls() - impl_->syscalls_before;
  return impl_->counters;
}

}  // namespace holdfast
