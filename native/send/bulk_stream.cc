#include "send/bulk_stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <cinttypes>
#include <utility>

#include "base/host_clock.h"
#include "send/zero_page.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// Hashed and handed to the kernel piece by piece, while in the CPU's cache.
constexpr uint64_t kPieceBytes = uint64_t{512} << 10;
constexpr size_t kZeroRunsMax = 8192;
constexpr uint64_t kZeroPagesMax = uint64_t{1} << 30;  // a run's length has 32 bits
// Small frames that may wait for company.
constexpr size_t kQueuedBytesMax = 64 << 10;
// An ERROR frame that explains a failed send is here by then, or it was lost.
constexpr int kExplainMs = 200;

static_assert(kFrameBytesMax <= kPagesBytesMax);
static_assert(kFrameBytesMax / 4096 * kRunBytesMax <= kTableBytesMax);
static_assert(kZeroRunsMax * kRunBytesMax <= kTableBytesMax);

constexpr size_t kReferencesMax = kReferencesBytesMax / DiskReference::kBytes;
static_assert(kReferencesMax * kRunBytesMax <= kTableBytesMax);

// Scattered pages are cold, and the processor's own prefetcher stops at a
// page's end: what is read soon is asked for ahead.
constexpr uint64_t kCacheLineBytes = 64;
constexpr uint64_t kPrefetchBytes = 4096;
constexpr uint64_t kHashStepBytes = 1024;
constexpr size_t kRunsAhead = 8;

void HashExtents(const PageSource& source, std::span<const Extent> part, Digest& digest) {
  for (size_t i = 0; i < part.size(); i++) {
    const Extent& extent = part[i];
    for (uint64_t at = 0; at < extent.bytes; at += kHashStepBytes) {
      const uint64_t step = std::min(kHashStepBytes, extent.bytes - at);
      const uint64_t ahead = at + kPrefetchBytes;
      const std::byte* soon = nullptr;
      if (ahead < extent.bytes) {
        soon = source.base + extent.offset + ahead;
      } else if (i + 1 < part.size()) {
        soon = source.base + part[i + 1].offset + at % kPrefetchBytes;
      }
      for (uint64_t line = 0; soon != nullptr && line < step; line += kCacheLineBytes) {
        __builtin_prefetch(soon + line);
      }
      digest.Update({source.base + extent.offset + at, step});
    }
  }
}

// What sends the pages that `refused` cannot. Files on a hugetlbfs take part in
// neither sendfile nor splice, but their pages can be lent from the mapping.
Strategy NextBest(Strategy refused) {
  HF_ASSERT(refused != Strategy::kCopy);  // which sends whatever can be read
  const bool by_file = refused == Strategy::kSendfile || refused == Strategy::kSplice;
  return by_file ? Strategy::kVmsplice : Strategy::kCopy;
}

iovec Part(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

}  // namespace

void BulkStream::TableBuilder::Add(uint64_t page) {
  pages_++;
  if (runs_ > 0 && last_.first_page + last_.pages == page) {
    last_.pages++;
    return;
  }
  if (runs_ > 0) table_.Add(last_);
  last_ = {page, 1};
  runs_++;
}

void BulkStream::TableBuilder::Clear() {
  table_.Clear();
  runs_ = 0;
  pages_ = 0;
}

// Once, before Clear.
std::span<const std::byte> BulkStream::TableBuilder::Encode() {
  table_.Add(last_);
  return table_.bytes();
}

Result<HelloOkBody> BulkStream::Handshake(const HelloBody& hello, int timeout_ms) {
  epoch_ = 0;
  HF_TRY(Queue({.type = FrameType::kHello, .payload_bytes = HelloBody::kBytes}, {}));
  HF_TRY(SendQueued(EncodeHello(hello), false));
  std::array<std::byte, HelloOkBody::kBytes> body;
  auto header = Await(FrameType::kHelloOk, body, timeout_ms);
  if (!header.ok()) {
    Error error = header.error();
    if (error.sys_errno == ETIMEDOUT) error.code = ErrorCode::kConnect;
    return error;
  }
  const HelloOkBody ok = DecodeHelloOk(body);
  if (ok.version != kWireVersion) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("HELLO_OK frame: version %" PRIu32 ", not %" PRIu32, ok.version,
                          kWireVersion));
  }
  return ok;
}

Status BulkStream::Begin(uint64_t epoch, bool digested, Strategy strategy) {
  epoch_ = epoch;
  slice_ = 0;
  digested_ = digested;
  counters_ = {};
  again_ = false;
  before_again_ = {};
  syscalls_before_ = socket_.syscalls();
  tally_before_ = TallyOfSenders();
  digest_.Reset();
  UseStrategy(strategy);
  FrameHeader header{.type = FrameType::kBegin};
  if (epoch == 0) header.flags = kFlagBase;
  return Queue(header, {});
}

void BulkStream::BeginAgain(const WantedBody& why) {
  HF_ASSERT(pages_.pages() == 0 && zeros_.pages() == 0);
  again_ = true;
  slice_ = 0;
  digest_.Reset();
  counters_.disk_pages_different += why.different;
  counters_.disk_pages_unread += why.unread;
  before_again_ = {counters_.pages + counters_.disk_pages, counters_.zero_pages};
  UseStrategy(strategy_);
}

void BulkStream::UseStrategy(Strategy strategy) {
  if (strategy != strategy_) instead_.reset();
  strategy_ = strategy;
  if (strategy_ == Strategy::kSendfile) socket_.SetCork(true);
}

Status BulkStream::EndSlice() {
  HF_TRY(FlushZeros());
  HF_TRY(SendQueued({}, false));
  if (strategy_ == Strategy::kSendfile) socket_.SetCork(false);
  return {};
}

void BulkStream::BeginSlice(Strategy strategy) {
  slice_++;
  UseStrategy(strategy);
}

// Header and table; the payload is the caller's to send.
Status BulkStream::Queue(FrameHeader header, std::span<const std::byte> table) {
  header.epoch = epoch_;
  header.table_bytes = static_cast<uint32_t>(table.size());
  if (!table.empty()) header.slice = slice_;
  const HeaderBytes head = EncodeHeader(header);
  if (queued_.size() + head.size() + table.size() > kQueuedBytesMax) HF_TRY(SendQueued({}, true));
  queued_.insert(queued_.end(), head.begin(), head.end());
  queued_.insert(queued_.end(), table.begin(), table.end());
  return {};
}

Status BulkStream::SendQueued(std::span<const std::byte> payload, bool more) {
  iovec parts[2];
  size_t count = 0;
  if (!queued_.empty()) parts[count++] = Part(queued_);
  if (!payload.empty()) parts[count++] = Part(payload);
  if (count == 0) return {};
  const Status sent = socket_.SendAll(std::span(parts).first(count), more);
  if (!sent.ok()) return Explain(sent.error());
  counters_.bytes += queued_.size() + payload.size();
  queued_.clear();
  return {};
}

Status BulkStream::Pages(const PageSource& source, std::span<const PageRun> runs) {
  for (size_t i = 0; i < runs.size(); i++) {
    const PageRun& run = runs[i];
    HF_ASSERT((run.source_page + run.pages) * page_size_ <= source.size);
    if (i + kRunsAhead < runs.size()) {
      // Where the zero-page test looks first, and nearly always last.
      __builtin_prefetch(source.base + runs[i + kRunsAhead].source_page * page_size_);
    }
    for (uint32_t page = 0; page < run.pages; page++) {
      const uint64_t offset = (run.source_page + page) * page_size_;
      if (IsZeroPage(source.base + offset, page_size_)) {
        zeros_.Add(run.first_page + page);
        if (zeros_.runs() == kZeroRunsMax || zeros_.pages() == kZeroPagesMax) HF_TRY(FlushZeros());
        continue;
      }
      if (Refer(source, run.first_page + page, offset)) {
        if (places_.size() == kReferencesMax) HF_TRY(FlushReferences());
        continue;
      }
      pages_.Add(run.first_page + page);
      if (!extents_.empty() && extents_.back().offset + extents_.back().bytes == offset) {
        extents_.back().bytes += page_size_;
      } else {
        extents_.push_back({offset, page_size_});
      }
      if ((pages_.pages() + 1) * page_size_ > kFrameBytesMax) HF_TRY(FlushPages(source));
    }
  }
  HF_TRY(FlushReferences());
  return FlushPages(source);
}

// Only in what is no slice ahead of the pause: those are replaced by later ones, and
// what is asked for again must be what counts.
bool BulkStream::Refer(const PageSource& source, uint64_t page, uint64_t offset) {
  if (index_ == nullptr || again_ || slice_ > 0) return false;
  const auto place = index_->Find(source.base + offset);
  if (!place) return false;
  referred_.Add(page);
  places_.push_back(*place);
  contents_.push_back(source.base + offset);
  return true;
}

// Of a page that the guest changes meanwhile (base rounds) the hash is of whatever
// was seen here: what the disk does not have is asked for, and what changed is dirty.
Status BulkStream::FlushReferences() {
  if (places_.empty()) return {};
  hashes_.resize(contents_.size());
  HashContents(contents_, page_size_, hashes_);
  references_.clear();
  for (size_t i = 0; i < places_.size(); i++) {
    PutReference(references_, {places_[i].offset, places_[i].disk, hashes_[i]});
  }
  const auto table = referred_.Encode();
  if (digested_) {
    digest_.Update(table);
    digest_.Update(references_);
  }
  HF_TRY(Queue({.type = FrameType::kReferences, .payload_bytes = references_.size()}, table));
  HF_TRY(SendQueued(references_, true));
  counters_.disk_pages += places_.size();
  counters_.disk_reference_bytes += kFrameHeaderBytes + table.size() + references_.size();
  referred_.Clear();
  places_.clear();
  contents_.clear();
  return {};
}

Status BulkStream::FlushZeros() {
  if (zeros_.pages() == 0) return {};
  const auto table = zeros_.Encode();
  if (digested_) digest_.Update(table);
  HF_TRY(Queue({.type = FrameType::kZero}, table));
  counters_.zero_pages += zeros_.pages();
  zeros_.Clear();
  return {};
}

Status BulkStream::FlushPages(const PageSource& source) {
  if (pages_.pages() == 0) return {};
  const auto table = pages_.Encode();
  if (digested_) digest_.Update(table);
  const uint64_t bytes = pages_.pages() * page_size_;
  HF_TRY(Queue({.type = FrameType::kPages, .payload_bytes = bytes}, table));
  HF_TRY(SendQueued({}, true));
  HF_TRY(SendPieces(source));
  counters_.pages += pages_.pages();
  counters_.bytes += bytes;
  pages_.Clear();
  extents_.clear();
  return {};
}

// Cuts the frame's extents into pieces, hashes each and sends it.
Status BulkStream::SendPieces(const PageSource& source) {
  if (!digested_) return SendExtents(source, extents_);
  size_t first = 0;
  while (first < extents_.size()) {
    uint64_t bytes = 0;
    size_t end = first;
    while (end < extents_.size() && bytes + extents_[end].bytes <= kPieceBytes) {
      bytes += extents_[end++].bytes;
    }
    if (end > first) {
      HF_TRY(SendExtents(source, std::span(extents_).subspan(first, end - first)));
      first = end;
      continue;
    }
    const Extent head{extents_[first].offset, kPieceBytes};
    extents_[first].offset += kPieceBytes;
    extents_[first].bytes -= kPieceBytes;
    HF_TRY(SendExtents(source, std::span(&head, 1)));
  }
  return {};
}

Strategy BulkStream::StrategyFor(const PageSource& source) const {
  return refused_fd_ == source.fd ? instead_.value_or(strategy_) : strategy_;
}

Status BulkStream::SendExtents(const PageSource& source, std::span<const Extent> part) {
  if (digested_) HashExtents(source, part, digest_);
  for (;;) {
    const Strategy strategy = StrategyFor(source);
    const auto index = static_cast<size_t>(strategy);
    if (senders_[index] == nullptr) senders_[index] = PageSender::Make(strategy);
    unfinished_[index] = true;
    const Status sent = senders_[index]->Send(source, part, socket_);
    if (sent.ok()) return {};
    if (sent.error().code != ErrorCode::kUnsupported) return Explain(sent.error());
    instead_ = NextBest(strategy);
    refused_fd_ = source.fd;
  }
}

Status BulkStream::State(FrameType type, std::span<const std::byte> bytes) {
  HF_TRY(FlushZeros());
  if (digested_) digest_.Update(bytes);
  HF_TRY(Queue({.type = type, .payload_bytes = bytes.size()}, {}));
  return SendQueued(bytes, true);
}

Status BulkStream::End(FrameType type, std::optional<int64_t> stopped_ns) {
  HF_TRY(FlushZeros());
  const PartBody body{
      .totals = {counters_.pages + counters_.disk_pages - before_again_.pages,
                 counters_.zero_pages - before_again_.zero_pages},
      .digest = digested_ ? digest_.Value() : 0,
      .age_ns = stopped_ns ? static_cast<uint64_t>(HostClock::Now().ns - *stopped_ns) : 0};
  const bool round = type == FrameType::kEndRound;
  const auto totals = EncodeTotals(body.totals);
  const auto part = EncodePart(body);
  const auto payload = round ? std::span<const std::byte>(totals) : std::span<const std::byte>(part);
  HF_TRY(Queue({.type = type, .payload_bytes = payload.size()}, {}));
  HF_TRY(SendQueued(payload, false));
  if (strategy_ == Strategy::kSendfile) socket_.SetCork(false);
  return {};
}

Status BulkStream::Abandon() {
  HF_ASSERT(pages_.pages() == 0 && zeros_.pages() == 0);
  HF_TRY(Queue({.type = FrameType::kAbandon}, {}));
  return SendQueued({}, false);
}

Result<FrameHeader> BulkStream::Await(FrameType type, std::span<std::byte> body, int timeout_ms,
                                      Wanted* wanted) {
  HeaderBytes head;
  HF_TRY(socket_.ReceiveAll(head, timeout_ms));
  auto header = DecodeHeader(head, 0);
  if (!header.ok()) return header.error();
  const FrameHeader& got = header.value();
  if (got.type == FrameType::kError) {
    std::array<std::byte, kErrorBytesMax> text;
    const auto payload = std::span(text).first(got.payload_bytes);
    HF_TRY(socket_.ReceiveAll(payload, timeout_ms));
    was_refused_ = true;
    return DecodeError(payload);
  }
  if (got.type == FrameType::kWanted && wanted != nullptr) {
    wanted->table.resize(got.table_bytes);
    HF_TRY(socket_.ReceiveAll(wanted->table, timeout_ms));
    std::array<std::byte, WantedBody::kBytes> why;
    HF_TRY(socket_.ReceiveAll(why, timeout_ms));
    wanted->why = DecodeWanted(why);
    return header;
  }
  if (got.type != type) {
    return Error::Of(ErrorCode::kProtocol, Text("%s frame instead of %s", FrameName(got.type),
                                                FrameName(type)));
  }
  HF_ASSERT(got.payload_bytes == body.size());
  HF_TRY(socket_.ReceiveAll(body, timeout_ms));
  return header;
}

Result<size_t> BulkStream::AwaitFirst(std::span<const std::unique_ptr<BulkStream>> streams,
                                      int timeout_ms) {
  std::vector<StreamSocket*> sockets;
  for (const auto& stream : streams) sockets.push_back(&stream->socket_);
  return StreamSocket::AwaitFirst(sockets, timeout_ms);
}

// An ERROR frame is an error, and so is everything else.
Error BulkStream::WhyEnded() { return Await(FrameType::kError, {}, kExplainMs).error(); }

// A peer that refuses says why before it closes: its words beat our errno.
Error BulkStream::Explain(Error error) {
  if (error.code != ErrorCode::kPeerLost || error.sys_errno == ETIMEDOUT) return error;
  Error said = WhyEnded();
  return was_refused_ ? said : error;
}

Status BulkStream::Finish() {
  for (size_t i = 0; i < kStrategyCount; i++) {
    if (!unfinished_[i]) continue;
    HF_TRY(senders_[i]->Finish(socket_));
    unfinished_[i] = false;
  }
  return {};
}

void BulkStream::Interrupt() { ::shutdown(socket_.fd(), SHUT_RDWR); }

BulkStream::Tally BulkStream::TallyOfSenders() const {
  Tally tally;
  for (const auto& sender : senders_) {
    if (sender == nullptr) continue;
    const SenderCounters counted = sender->counters();
    tally.copied_bytes += counted.copied_bytes;
    tally.reference_bytes += counted.reference_bytes;
    tally.completions += counted.completions;
  }
  return tally;
}

SendCounters BulkStream::counters() const {
  SendCounters counters = counters_;
  const Tally now = TallyOfSenders();
  counters.syscalls = socket_.syscalls() - syscalls_before_;
  counters.copied_bytes = now.copied_bytes - tally_before_.copied_bytes;
  counters.reference_bytes = now.reference_bytes - tally_before_.reference_bytes;
  counters.completions = now.completions - tally_before_.completions;
  return counters;
}

}  // namespace holdfast
