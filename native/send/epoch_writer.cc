// The order of the calls, and who sends what: BulkStream does the sending.

#include "send/epoch_writer.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/worker_pool.h"
#include "send/wanted_runs.h"
#include "wire/state_delta.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// What a stream takes at a time: a share that lets slow streams carry less, but
// no more than keeps all busy, and no less than is worth waking a thread for.
constexpr uint64_t kShareBytesMax = uint64_t{1} << 20;
constexpr uint64_t kShareBytesMin = uint64_t{128} << 10;
constexpr uint64_t kSharesPerStream = 4;
// When another stream has ended, what stream 0 has to say is here by then.
constexpr int kLateAnswerMs = 200;

// Device states up to this size are kept to send the next one as a delta: of
// machines with many queues they have a few hundred kilobytes.
constexpr size_t kDeltaStateBytesMax = size_t{16} << 20;

// Hands out runs in order, so many pages at a time. Any thread.
class RunShares {
 public:
  RunShares(std::span<const PageRun> runs, uint64_t share_pages)
      : runs_(runs), share_pages_(share_pages) {}

  bool Take(std::vector<PageRun>& share) {
    share.clear();
    const std::lock_guard lock(mutex_);
    for (uint64_t room = share_pages_; room > 0 && !runs_.empty();) {
      const PageRun& run = runs_[0];
      const auto pages = static_cast<uint32_t>(std::min<uint64_t>(run.pages - done_, room));
      share.push_back({run.first_page + done_, run.source_page + done_, pages});
      room -= pages;
      done_ += pages;
      if (done_ < run.pages) continue;
      runs_ = runs_.subspan(1);
      done_ = 0;
    }
    return !share.empty();
  }

 private:
  std::mutex mutex_;
  std::span<const PageRun> runs_;
  const uint64_t share_pages_;
  uint32_t done_ = 0;  // pages of the first run
};

}  // namespace

struct EpochWriter::Impl {
  // kSliced: in an epoch, behind a slice and before the next pages.
  enum class Phase { kBetween, kRound, kEpoch, kSliced, kSealed, kCommitted };

  explicit Impl(const Hello& hello)
      : page_size(hello.page_size), ram_pages(hello.ram_bytes / hello.page_size) {}

  Status AddStream(Descriptor connected, const Hello& hello, unsigned count, int timeout_ms,
                   const CancelSignal& cancel);
  Status Begin(Phase next, uint64_t number);
  void GoOn();
  Status SendDevice(std::span<const std::byte> bytes);
  Status Pages(const PageSource& source, std::span<const PageRun> runs);
  Status SendShares(const PageSource& source, std::span<const PageRun> runs, uint64_t pages);
  void SendFrom(RunShares& shares, const PageSource& source, size_t index);
  void Fail(size_t index, Error error);
  Status WorstOf();
  Status EndParts(FrameType type, std::optional<int64_t> stopped_ns = std::nullopt);
  Result<FrameHeader> AwaitAnswer(FrameType type, std::span<std::byte> body,
                                  Wanted* wanted = nullptr);
  Result<FrameHeader> AwaitEnd(FrameType end, FrameType answer, std::span<std::byte> body,
                               const Again* again);
  Status SendAgain(const Wanted& wanted, FrameType end, const Again* again);
  uint64_t Referred() const;
  Status FinishAll();

  const uint32_t page_size;
  const uint64_t ram_pages;
  uint64_t link = 0;
  bool verify = true;
  Strategy strategy = Strategy::kCopy;

  Phase phase = Phase::kBetween;
  uint64_t epoch = 0;
  uint32_t slices = 0;     // ended ones of the epoch
  uint64_t next_page = 0;  // runs ascend over a whole slice or round
  std::optional<int64_t> stopped_ns;  // of the epoch
  uint64_t asked_pages = 0;           // again, of what is open

  bool takes_prefix_ahead = false;
  std::optional<PrefixName> prefix_ahead;  // that the backup keeps

  // The backup's checkpoint has device_base; the epoch under way, device_sent.
  std::optional<std::vector<std::byte>> device_base;
  std::optional<std::vector<std::byte>> device_sent;
  std::vector<std::byte> delta;
  uint64_t device_bytes_sent = 0;

  std::vector<std::unique_ptr<BulkStream>> streams;
  std::atomic<bool> failed{false};
  std::vector<std::optional<Error>> errors;        // by stream
  std::vector<std::vector<PageRun>> share_of;      // by stream; kept for its memory
  std::unique_ptr<WorkerPool> threads;             // last: they use all of the above
};

Status EpochWriter::Impl::AddStream(Descriptor connected, const Hello& hello, unsigned count,
                                    int timeout_ms, const CancelSignal& cancel) {
  HelloBody body;
  body.page_size = hello.page_size;
  body.ram_bytes = hello.ram_bytes;
  body.token = hello.token;
  body.link = link;
  body.stream = static_cast<uint16_t>(streams.size());
  body.streams = static_cast<uint16_t>(count);
  body.flags = hello.verify ? HelloBody::kFlagVerify : 0;
  auto stream = std::make_unique<BulkStream>(std::move(connected), page_size, cancel);
  auto ok = stream->Handshake(body, timeout_ms);
  if (!ok.ok()) return ok.error();
  if (streams.empty()) {
    link = ok.value().link;
    // The peer may want no digests, but not some that were not offered.
    verify = hello.verify && (ok.value().flags & HelloBody::kFlagVerify) != 0;
    takes_prefix_ahead = (ok.value().flags & HelloOkBody::kFlagPrefixAhead) != 0;
  }
  streams.push_back(std::move(stream));
  return {};
}

Status EpochWriter::Impl::Begin(Phase next, uint64_t number) {
  HF_ASSERT(phase == Phase::kBetween);
  phase = next;
  epoch = number;
  next_page = 0;
  slices = 0;
  asked_pages = 0;
  stopped_ns.reset();
  const bool digested = verify && next == Phase::kEpoch;
  for (const auto& stream : streams) HF_TRY(stream->Begin(number, digested, strategy));
  return {};
}

// From one slice to the next.
void EpochWriter::Impl::GoOn() {
  if (phase != Phase::kSliced) return;
  phase = Phase::kEpoch;
  next_page = 0;
  for (const auto& stream : streams) stream->BeginSlice(strategy);
}

Status EpochWriter::Impl::SendDevice(std::span<const std::byte> bytes) {
  device_sent.reset();
  if (bytes.size() <= kDeltaStateBytesMax) {
    device_sent.emplace(bytes.begin(), bytes.end());
    if (device_base && EncodeStateDelta(*device_base, bytes, delta)) {
      device_bytes_sent = delta.size();
      return streams[0]->State(FrameType::kDeviceDelta, delta);
    }
  }
  device_bytes_sent = bytes.size();
  return streams[0]->State(FrameType::kDevice, bytes);
}

Status EpochWriter::Impl::Pages(const PageSource& source, std::span<const PageRun> runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) {
    HF_ASSERT(run.pages > 0 && run.first_page >= next_page);
    HF_ASSERT(run.first_page + run.pages <= ram_pages);
    next_page = run.first_page + run.pages;
    pages += run.pages;
  }
  if (streams.size() == 1) return streams[0]->Pages(source, runs);
  return SendShares(source, runs, pages);
}

Status EpochWriter::Impl::SendShares(const PageSource& source, std::span<const PageRun> runs,
                                     uint64_t pages) {
  const uint64_t even = pages * page_size / (streams.size() * kSharesPerStream);
  const uint64_t share_pages =
      std::max<uint64_t>(1, std::clamp(even, kShareBytesMin, kShareBytesMax) / page_size);
  const uint64_t shares_count = (pages + share_pages - 1) / share_pages;
  RunShares shares(runs, share_pages);
  const std::thread::id caller = std::this_thread::get_id();
  threads->ForEach(std::min<uint64_t>(streams.size(), shares_count), [&](size_t index) {
    const bool helping = std::this_thread::get_id() != caller;
    const double cpu_before_ms = helping ? ThreadCpuMs() : 0;
    SendFrom(shares, source, index);
    if (helping) streams[index]->AddHelperCpu(ThreadCpuMs() - cpu_before_ms);
  });
  return WorstOf();
}

void EpochWriter::Impl::SendFrom(RunShares& shares, const PageSource& source, size_t index) {
  while (!failed && shares.Take(share_of[index])) {
    const Status sent = streams[index]->Pages(source, share_of[index]);
    if (!sent.ok()) Fail(index, sent.error());
  }
}

// A stream's loss is the connection's: the others are not to wait for a peer
// that may have nothing more to say.
void EpochWriter::Impl::Fail(size_t index, Error error) {
  errors[index] = std::move(error);
  if (failed.exchange(true)) return;
  for (size_t i = 0; i < streams.size(); i++) {
    if (i != index) streams[i]->Interrupt();
  }
}

// The error that says most: what the peer gave as its reason, if it did, on
// whichever stream; a stream that was interrupted says only that it was.
Status EpochWriter::Impl::WorstOf() {
  const Error* worst = nullptr;
  for (const auto& error : errors) {
    if (error && (worst == nullptr || worst->code == ErrorCode::kPeerLost)) worst = &*error;
  }
  if (worst == nullptr) return {};
  return *worst;
}

// Stream 0 last: its frame is the one that the answer is to.
Status EpochWriter::Impl::EndParts(FrameType type, std::optional<int64_t> stopped_ns) {
  for (size_t i = 1; i < streams.size(); i++) HF_TRY(streams[i]->End(FrameType::kEndPart));
  return streams[0]->End(type, stopped_ns);
}

// The answer comes on stream 0. The loss of another is the connection's: the
// peer may lack what it carried, and then has nothing to answer.
Result<FrameHeader> EpochWriter::Impl::AwaitAnswer(FrameType type, std::span<std::byte> body,
                                                   Wanted* wanted) {
  const int silence_ms_max = kPeerSilenceMsMax + static_cast<int>(Referred() / kReferencesPerMsMin);
  if (streams.size() == 1) return streams[0]->Await(type, body, silence_ms_max, wanted);
  auto first = BulkStream::AwaitFirst(streams, silence_ms_max);
  if (!first.ok()) return first.error();
  if (first.value() == 0) return streams[0]->Await(type, body, silence_ms_max, wanted);
  const Error ended = streams[first.value()]->WhyEnded();
  // A peer that answered and then left: its answer counts, whichever came first.
  auto answer = streams[0]->Await(type, body, kLateAnswerMs);
  if (answer.ok()) return answer;
  return ended.code == ErrorCode::kPeerLost && answer.error().code != ErrorCode::kPeerLost
             ? answer.error()
             : ended;
}

// The answer to the end of a round or an epoch, once the peer has all that it lacks.
Result<FrameHeader> EpochWriter::Impl::AwaitEnd(FrameType end, FrameType answer,
                                                std::span<std::byte> body, const Again* again) {
  for (;;) {
    Wanted wanted;
    auto header = AwaitAnswer(answer, body, &wanted);
    if (!header.ok() || header.value().type == answer) return header;
    if (header.value().epoch != epoch) {
      return Error::Of(ErrorCode::kProtocol,
                       Text("WANTED frame: epoch %" PRIu64 ", not %" PRIu64, header.value().epoch,
                            epoch));
    }
    HF_TRY(SendAgain(wanted, end, again));
  }
}

uint64_t EpochWriter::Impl::Referred() const {
  uint64_t pages = 0;
  for (const auto& stream : streams) pages += stream->counters().disk_pages;
  return pages;
}

Status EpochWriter::Impl::SendAgain(const Wanted& wanted, FrameType end, const Again* again) {
  const uint64_t referred = Referred();
  auto pages = CheckRuns(wanted.table, ram_pages);
  if (!pages.ok()) {
    return Error::Of(ErrorCode::kProtocol, "WANTED frame: " + pages.error().message);
  }
  asked_pages += pages.value();
  // A peer that asks for more than it was referred to could ask for ever.
  if (again == nullptr || asked_pages > referred) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("WANTED frame: %" PRIu64 " pages, but %" PRIu64 " were referred to",
                          asked_pages, referred));
  }
  auto runs = WantedRuns(wanted.table, again->runs);
  if (!runs.ok()) return runs.error();
  streams[0]->BeginAgain(wanted.why);
  HF_TRY(streams[0]->Pages(again->source, runs.value()));
  return streams[0]->End(end, stopped_ns);
}

Status EpochWriter::Impl::FinishAll() {
  for (const auto& stream : streams) HF_TRY(stream->Finish());
  return {};
}

EpochWriter::EpochWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {
  const size_t count = impl_->streams.size();
  impl_->errors.resize(count);
  impl_->share_of.resize(count);
  if (count > 1) {
    impl_->threads = std::make_unique<WorkerPool>(static_cast<unsigned>(count), "hf-send",
                                                   WorkerPool::Helpers::kNeeded);
  }
}
EpochWriter::~EpochWriter() = default;

Result<std::unique_ptr<EpochWriter>> EpochWriter::Connect(const std::string& host, uint16_t port,
                                                          const Hello& hello, unsigned streams,
                                                          int timeout_ms,
                                                          const CancelSignal& cancel) {
  HF_ASSERT(hello.page_size >= 4096 && hello.page_size % 4096 == 0);
  HF_ASSERT(hello.page_size <= kFrameBytesMax && hello.ram_bytes % hello.page_size == 0);
  HF_ASSERT(streams >= 1 && streams <= kStreamsMax);
  const double deadline_ms = MonotonicMs() + timeout_ms;
  const auto left_ms = [deadline_ms] {
    return std::max(1, static_cast<int>(deadline_ms - MonotonicMs()));
  };
  auto impl = std::make_unique<Impl>(hello);
  for (unsigned i = 0; i < streams; i++) {
    auto socket = StreamSocket::Dial(host, port, left_ms(), cancel);
    if (!socket.ok()) return socket.error();
    HF_TRY(impl->AddStream(std::move(socket).value(), hello, streams, left_ms(), cancel));
  }
  return std::unique_ptr<EpochWriter>(new EpochWriter(std::move(impl)));
}

Result<std::unique_ptr<EpochWriter>> EpochWriter::Adopt(Descriptor connected, const Hello& hello,
                                                        int timeout_ms,
                                                        const CancelSignal& cancel) {
  auto impl = std::make_unique<Impl>(hello);
  HF_TRY(impl->AddStream(std::move(connected), hello, 1, timeout_ms, cancel));
  return std::unique_ptr<EpochWriter>(new EpochWriter(std::move(impl)));
}

void EpochWriter::UseIndex(const DiskIndex* index) {
  for (const auto& stream : impl_->streams) stream->UseIndex(index);
}

void EpochWriter::LimitUnsent(uint64_t bytes) {
  for (const auto& stream : impl_->streams) stream->LimitUnsent(bytes);
}

void EpochWriter::UseStrategy(Strategy strategy) {
  HF_ASSERT(impl_->phase == Impl::Phase::kBetween || impl_->phase == Impl::Phase::kSliced);
  impl_->strategy = strategy;
}

Status EpochWriter::BeginRound() { return impl_->Begin(Impl::Phase::kRound, 0); }

Status EpochWriter::BeginEpoch(uint64_t epoch) {
  HF_ASSERT(epoch >= 1 && epoch <= kEpochMax);
  return impl_->Begin(Impl::Phase::kEpoch, epoch);
}

Status EpochWriter::Pages(const PageSource& source, std::span<const PageRun> runs, bool stable) {
  impl_->GoOn();
  // Only what cannot change may be hashed, and an epoch is hashed throughout.
  HF_ASSERT(impl_->phase == (stable ? Impl::Phase::kEpoch : Impl::Phase::kRound));
  return impl_->Pages(source, runs);
}

Status EpochWriter::EndSlice() {
  HF_ASSERT(impl_->phase == Impl::Phase::kEpoch && impl_->slices + 1 < kSlicesMax);
  for (const auto& stream : impl_->streams) HF_TRY(stream->EndSlice());
  impl_->slices++;
  impl_->phase = Impl::Phase::kSliced;
  return {};
}

Status EpochWriter::Abandon() {
  HF_ASSERT(impl_->phase == Impl::Phase::kSliced);
  for (const auto& stream : impl_->streams) HF_TRY(stream->Abandon());
  auto header = impl_->streams[0]->Await(FrameType::kAbandoned, {}, kPeerSilenceMsMax);
  if (!header.ok()) return header.error();
  HF_TRY(impl_->FinishAll());
  impl_->phase = Impl::Phase::kBetween;
  return {};
}

Status EpochWriter::PrefixAhead(std::span<const std::byte> bytes) {
  HF_ASSERT(impl_->phase == Impl::Phase::kRound);
  if (!impl_->takes_prefix_ahead) return {};
  const PrefixName name = NameOfPrefix(bytes);
  const auto digest = EncodePrefixName(name);
  std::vector<std::byte> payload(digest.begin(), digest.begin() + PrefixName::kDigestBytes);
  payload.insert(payload.end(), bytes.begin(), bytes.end());
  impl_->prefix_ahead = name;
  return impl_->streams[0]->State(FrameType::kPrefixAhead, payload);
}

Status EpochWriter::Prefix(std::span<const std::byte> bytes) {
  impl_->GoOn();
  HF_ASSERT(impl_->phase == Impl::Phase::kEpoch);
  if (impl_->prefix_ahead && *impl_->prefix_ahead == NameOfPrefix(bytes)) {
    return impl_->streams[0]->State(FrameType::kPrefixKept, EncodePrefixName(*impl_->prefix_ahead));
  }
  return impl_->streams[0]->State(FrameType::kPrefix, bytes);
}

Status EpochWriter::Device(std::span<const std::byte> bytes) {
  impl_->GoOn();
  HF_ASSERT(impl_->phase == Impl::Phase::kEpoch);
  impl_->phase = Impl::Phase::kSealed;
  return impl_->SendDevice(bytes);
}

uint64_t EpochWriter::device_bytes_sent() const { return impl_->device_bytes_sent; }

Status EpochWriter::EndRound(const Again* again) {
  HF_ASSERT(impl_->phase == Impl::Phase::kRound);
  HF_TRY(impl_->EndParts(FrameType::kEndRound));
  auto header = impl_->AwaitEnd(FrameType::kEndRound, FrameType::kRoundOk, {}, again);
  if (!header.ok()) return header.error();
  HF_TRY(impl_->FinishAll());
  impl_->phase = Impl::Phase::kBetween;
  return {};
}

Status EpochWriter::Commit(std::optional<int64_t> stopped_ns) {
  HF_ASSERT(impl_->phase == Impl::Phase::kSealed);
  impl_->phase = Impl::Phase::kCommitted;
  impl_->stopped_ns = stopped_ns;
  return impl_->EndParts(FrameType::kCommit, stopped_ns);
}

Result<EpochWriter::Ack> EpochWriter::AwaitAck(uint64_t epoch, const Again* again) {
  HF_ASSERT(impl_->phase == Impl::Phase::kCommitted && epoch == impl_->epoch);
  std::array<std::byte, AckBody::kBytes> body;
  auto header = impl_->AwaitEnd(FrameType::kCommit, FrameType::kAck, body, again);
  if (!header.ok()) return header.error();
  // An acknowledgement of another epoch must never release this one's output.
  if (header.value().epoch != epoch) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("ACK frame: epoch %" PRIu64 ", not %" PRIu64, header.value().epoch,
                          epoch));
  }
  HF_TRY(impl_->FinishAll());
  impl_->phase = Impl::Phase::kBetween;
  std::swap(impl_->device_base, impl_->device_sent);
  const uint64_t apply_us = DecodeAck(body).last_apply_us;
  return Ack{apply_us > INT64_MAX ? -1 : static_cast<int64_t>(apply_us)};
}

bool EpochWriter::verified() const { return impl_->verify; }

uint64_t EpochWriter::link() const { return impl_->link; }

Result<bool> EpochWriter::AwaitWord(int timeout_ms) {
  auto first = BulkStream::AwaitFirst(impl_->streams, timeout_ms);
  if (first.ok()) return true;
  if (first.error().sys_errno == ETIMEDOUT) return false;
  return first.error();
}

void EpochWriter::Interrupt() {
  for (const auto& stream : impl_->streams) stream->Interrupt();
}

SendCounters EpochWriter::counters() const {
  SendCounters total;
  for (const auto& stream : impl_->streams) {
    const SendCounters one = stream->counters();
    total.pages += one.pages;
    total.zero_pages += one.zero_pages;
    total.bytes += one.bytes;
    total.syscalls += one.syscalls;
    total.copied_bytes += one.copied_bytes;
    total.reference_bytes += one.reference_bytes;
    total.completions += one.completions;
    total.helper_cpu_ms += one.helper_cpu_ms;
    total.disk_pages += one.disk_pages;
    total.disk_reference_bytes += one.disk_reference_bytes;
    total.disk_pages_different += one.disk_pages_different;
    total.disk_pages_unread += one.disk_pages_unread;
  }
  return total;
}

}  // namespace holdfast
