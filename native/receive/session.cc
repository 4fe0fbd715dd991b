#include "receive/session.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstring>

#include "base/clock.h"
#include "wire/run_table.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// Page bytes of two epochs in memory at once: up to the largest epoch so far,
// or this, whichever is more.
constexpr uint64_t kStagingFloorBytes = uint64_t{64} << 20;
// After ERROR, what the primary still sends is thrown away so long, so that
// the kernel's reset does not overtake the frame.
constexpr int kLingerMsMax = 300;

// Equal time for every wrong token, so that none can be guessed byte by byte.
bool SameToken(std::span<const std::byte, 32> a, std::span<const std::byte, 32> b) {
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); i++) difference |= std::to_integer<unsigned>(a[i] ^ b[i]);
  return difference == 0;
}

void SetReceiveTimeout(int fd, int timeout_ms) {
  const timeval timeout{timeout_ms / 1000, timeout_ms % 1000 * 1000};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

// A primary that vanished without a word frees its place in some ten seconds.
void PrepareSocket(int fd) {
  const auto set = [fd](int level, int name, int value) {
    ::setsockopt(fd, level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 4);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  SetReceiveTimeout(fd, StreamReader::kReceiveTimeoutMs);
}

Status CheckOptions(const Receiver::Session& options) {
  const auto refuse = [](std::string text) {
    return Error::Of(ErrorCode::kLimit, "session: " + std::move(text));
  };
  const uint32_t page = options.page_size;
  if (page < 4096 || page > kPagesBytesMax || (page & (page - 1)) != 0) {
    return refuse(Text("pageSize %" PRIu32 " is not a power of two from 4096 to %" PRIu64, page,
                       kPagesBytesMax));
  }
  if (options.ram_bytes == 0 || options.ram_bytes % page != 0) {
    return refuse(Text("ramBytes %" PRIu64 " is not a positive multiple of pageSize %" PRIu32,
                       options.ram_bytes, page));
  }
  return {};
}

WireLimits LimitsOf(const Receiver::Session& options) {
  // A page comes once per epoch: more than RAM cannot be needed.
  return {options.page_size, options.ram_bytes,
          std::min(options.epoch_bytes_max, options.ram_bytes), options.device_bytes_max};
}

}  // namespace

Result<std::unique_ptr<ReplicaSession>> ReplicaSession::Open(const Receiver::Session& options,
                                                             const Receiver::EventSink& sink,
                                                             std::atomic<double>& last_byte_ms) {
  HF_TRY(CheckOptions(options));
  const uint64_t staging_bytes_max = LimitsOf(options).epoch_bytes_max;
  auto first = EpochStaging::Reserve(staging_bytes_max);
  if (!first.ok()) return first.error();
  auto second = EpochStaging::Reserve(staging_bytes_max);
  if (!second.ok()) return second.error();
  auto replica = Replica::Create(options.ram_path, options.ram_bytes, options.page_size);
  if (!replica.ok()) return replica.error();
  return std::unique_ptr<ReplicaSession>(new ReplicaSession(
      options, sink, last_byte_ms, std::move(replica).value(),
      {std::move(first).value(), std::move(second).value()}));
}

ReplicaSession::ReplicaSession(const Receiver::Session& options, const Receiver::EventSink& sink,
                               std::atomic<double>& last_byte_ms, Replica replica,
                               std::array<EpochStaging, 2> staging)
    : options_(options),
      sink_(sink),
      last_byte_ms_(last_byte_ms),
      decoder_(LimitsOf(options)),
      replica_(std::move(replica)),
      slots_{Slot(std::move(staging[0])), Slot(std::move(staging[1]))} {
  apply_thread_ = Thread("hf-apply", [this] { ApplyLoop(); });
  receive_thread_ = Thread("hf-receive", [this] { ReceiveLoop(); });
}

ReplicaSession::~ReplicaSession() { Close(); }

void ReplicaSession::Close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    CutConnection(WireError::kClosing, "the backup closed the session");
  }
  changed_.notify_all();
  receive_thread_.Join();
  apply_thread_.Join();
}

std::optional<ReplicaSession::Refusal> ReplicaSession::Check(const HelloBody& hello) const {
  if (!SameToken(hello.token, options_.token)) return Refusal{WireError::kAuth, "token refused"};
  if (hello.page_size != options_.page_size) {
    return Refusal{WireError::kProtocol,
                   Text("HELLO frame: page size %" PRIu32 ", but the session has %" PRIu32,
                        hello.page_size, options_.page_size)};
  }
  if (hello.ram_bytes != options_.ram_bytes) {
    return Refusal{WireError::kProtocol,
                   Text("HELLO frame: RAM bytes %" PRIu64 ", but the session has %" PRIu64,
                        hello.ram_bytes, options_.ram_bytes)};
  }
  return std::nullopt;
}

std::optional<ReplicaSession::Refusal> ReplicaSession::Adopt(Descriptor& socket) {
  const std::lock_guard lock(mutex_);
  if (fenced_) return Refusal{WireError::kFenced, "the backup no longer acknowledges"};
  if (closing_) return Refusal{WireError::kClosing, "the session is closing"};
  if (connected_) return Refusal{WireError::kBusy, "the session has a bulk connection"};
  PrepareSocket(socket.get());
  socket_ = std::move(socket);
  last_byte_ms_.store(MonotonicMs(), std::memory_order_relaxed);
  // A failure shows when the receive thread reads.
  (void)Answer(FrameType::kHelloOk, 0, EncodeHelloOk({}));
  connected_ = true;
  Emit({.type = ReceiverEvent::Type::kConnected});
  changed_.notify_all();
  return std::nullopt;
}

// Under mutex_. The primary reads each answer before it asks again, so there
// is always room; one that does not read must not hold the mutex.
Status ReplicaSession::Answer(FrameType type, uint64_t epoch, std::span<const std::byte> body) {
  const HeaderBytes head =
      EncodeHeader({.type = type, .epoch = epoch, .payload_bytes = body.size()});
  std::array<std::byte, kFrameHeaderBytes + AckBody::kBytes> frame;
  HF_ASSERT(head.size() + body.size() <= frame.size());
  std::memcpy(frame.data(), head.data(), head.size());
  if (!body.empty()) std::memcpy(frame.data() + head.size(), body.data(), body.size());
  const size_t bytes = head.size() + body.size();
  const ssize_t sent = ::send(socket_.get(), frame.data(), bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(bytes)) return {};
  if (sent >= 0) errno = EAGAIN;
  return Error::FromErrno("send", "bulk connection: answering the primary",
                          ErrorCode::kPeerLost);
}

// --- receive thread ---

void ReplicaSession::ReceiveLoop() {
  for (;;) {
    int fd;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return connected_ || closing_; });
      if (!connected_) return;
      fd = socket_.get();
    }
    StreamReader reader(fd, stop_, last_byte_ms_);
    decoder_.NewConnection();
    HangUp(Serve(reader));
  }
}

Error ReplicaSession::Serve(StreamReader& reader) {
  for (;;) {
    HeaderBytes head;
    HF_TRY(reader.Read(head, nullptr));
    auto header = decoder_.Header(head);
    if (!header.ok()) return header.error();
    HF_TRY(Handle(header.value(), reader));
  }
}

Status ReplicaSession::Handle(const FrameHeader& header, StreamReader& reader) {
  incoming_.bytes += kFrameHeaderBytes + header.table_bytes + header.payload_bytes;
  switch (header.type) {
    case FrameType::kBegin: return OnBegin(header);
    case FrameType::kPages: return OnPages(header, reader);
    case FrameType::kZero: return OnZero(header, reader);
    case FrameType::kPrefix:
    case FrameType::kDevice: return OnState(header, reader);
    case FrameType::kEndRound: return OnEndRound(reader);
    case FrameType::kCommit: return OnCommit(reader);
    case FrameType::kError: {
      std::vector<std::byte> payload(header.payload_bytes);
      HF_TRY(reader.Read(payload, nullptr));
      return Error::Of(ErrorCode::kPeerLost, DecodeError(payload).message);
    }
    case FrameType::kHello:
    case FrameType::kHelloOk:
    case FrameType::kAck:
    case FrameType::kRoundOk: break;
  }
  HF_ASSERT(!"a frame that the decoder lets through");
}

Status ReplicaSession::OnBegin(const FrameHeader&) {
  incoming_.prefix.reset();
  incoming_.device.clear();
  incoming_.digest.Reset();
  incoming_.first_byte_ms = MonotonicMs();
  incoming_.bytes = kFrameHeaderBytes;
  if (!decoder_.in_epoch()) return {};
  auto slot = ClaimSlot();
  if (!slot.ok()) return slot.error();
  incoming_.slot = slot.value();
  incoming_.slot->epoch = decoder_.epoch();
  return {};
}

Status ReplicaSession::OnPages(const FrameHeader& header, StreamReader& reader) {
  if (decoder_.in_round()) {
    round_table_.resize(header.table_bytes);
    HF_TRY(reader.Read(round_table_, nullptr));
    HF_TRY(decoder_.Table(round_table_));
    replica_.Place(RunTable(round_table_), round_parts_);
    return reader.ReadScattered(round_parts_);
  }
  Slot& slot = *incoming_.slot;
  const auto table = slot.staging.AddTable(false, header.table_bytes);
  HF_TRY(reader.Read(table, &incoming_.digest));
  HF_TRY(decoder_.Table(table));
  HF_TRY(MakeRoom(slot, header.payload_bytes));
  auto pages = slot.staging.AddPages(header.payload_bytes);
  if (!pages.ok()) return pages.error();
  return reader.Read(pages.value(), &incoming_.digest);
}

Status ReplicaSession::OnZero(const FrameHeader& header, StreamReader& reader) {
  if (decoder_.in_round()) {
    round_table_.resize(header.table_bytes);
    HF_TRY(reader.Read(round_table_, nullptr));
    HF_TRY(decoder_.Table(round_table_));
    replica_.Zero(RunTable(round_table_));
    return {};
  }
  const auto table = incoming_.slot->staging.AddTable(true, header.table_bytes);
  HF_TRY(reader.Read(table, &incoming_.digest));
  return decoder_.Table(table);
}

Status ReplicaSession::OnState(const FrameHeader& header, StreamReader& reader) {
  const bool prefix = header.type == FrameType::kPrefix;
  std::vector<std::byte>& to = prefix ? incoming_.prefix.emplace() : incoming_.device;
  to.resize(header.payload_bytes);
  return reader.Read(to, &incoming_.digest);
}

Status ReplicaSession::OnEndRound(StreamReader& reader) {
  std::array<std::byte, PageTotals::kBytes> payload;
  HF_TRY(reader.Read(payload, nullptr));
  auto totals = decoder_.EndRound(payload);
  if (!totals.ok()) return totals.error();
  const std::lock_guard lock(mutex_);
  if (stop_) return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
  HF_TRY(Answer(FrameType::kRoundOk, 0, {}));
  Emit({.type = ReceiverEvent::Type::kRound,
        .pages = totals.value().pages,
        .zero_pages = totals.value().zero_pages,
        .bytes = incoming_.bytes});
  return {};
}

Status ReplicaSession::OnCommit(StreamReader& reader) {
  std::array<std::byte, CommitBody::kBytes> payload;
  HF_TRY(reader.Read(payload, nullptr));
  auto totals = decoder_.Commit(payload, incoming_.digest.Value());
  if (!totals.ok()) return totals.error();
  return Publish(totals.value());
}

// Rule "atomic checkpoints", and "one active side": what is acknowledged will
// be applied, and what comes after Fence() is neither.
Status ReplicaSession::Publish(const PageTotals& totals) {
  const std::lock_guard lock(mutex_);
  if (stop_) return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
  Slot& slot = *incoming_.slot;
  incoming_.slot = nullptr;
  checkpoint_.epoch = slot.epoch;
  checkpoint_.device.swap(incoming_.device);
  if (incoming_.prefix) checkpoint_.prefix = *std::move(incoming_.prefix);
  partial_dropped_ = false;
  const uint64_t epoch_bytes = slot.staging.used_bytes();
  largest_epoch_bytes_ = std::max(largest_epoch_bytes_, epoch_bytes);
  recent_epoch_bytes_ =
      std::max(epoch_bytes, recent_epoch_bytes_ - recent_epoch_bytes_ / 32);
  slot.state = Slot::State::kQueued;
  apply_queue_.push_back(&slot);
  const Status acknowledged = Answer(FrameType::kAck, slot.epoch, EncodeAck({last_apply_us_}));
  Emit({.type = ReceiverEvent::Type::kCommitted,
        .epoch = slot.epoch,
        .pages = totals.pages,
        .zero_pages = totals.zero_pages,
        .bytes = incoming_.bytes,
        .millis = MonotonicMs() - incoming_.first_byte_ms});
  changed_.notify_all();
  return acknowledged;
}

void ReplicaSession::HangUp(Error error) {
  bool refusing = false;
  {
    const std::lock_guard lock(mutex_);
    if (stop_) {
      error = fenced_ ? Error::Of(ErrorCode::kFenced, "bulk connection: ended by fencing")
                      : Error::Of(ErrorCode::kCancelled, "bulk connection: session closed");
    } else if (error.code != ErrorCode::kPeerLost) {
      const std::string frame = EncodeErrorFrame(WireErrorOf(error.code), error.message);
      const ssize_t sent =
          ::send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      refusing = sent == static_cast<ssize_t>(frame.size());
    }
  }
  if (refusing) LingerForError();
  const std::lock_guard lock(mutex_);
  if (incoming_.slot != nullptr) {
    partial_dropped_ = true;
    incoming_.slot->staging.Clear();
    incoming_.slot->state = Slot::State::kFree;
    incoming_.slot = nullptr;
  }
  Emit({.type = ReceiverEvent::Type::kDisconnected, .error = std::move(error)});
  socket_.Close();
  connected_ = false;
  changed_.notify_all();
}

// Under mutex_. Makes the receive thread give up, wherever it is.
void ReplicaSession::CutConnection(WireError code, const char* text) {
  stop_ = true;
  if (!connected_) return;
  const std::string frame = EncodeErrorFrame(code, text);
  [[maybe_unused]] const ssize_t sent =
      ::send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  ::shutdown(socket_.get(), SHUT_RDWR);
}

void ReplicaSession::LingerForError() {
  ::shutdown(socket_.get(), SHUT_WR);
  const double deadline = MonotonicMs() + kLingerMsMax;
  std::array<std::byte, 16 << 10> waste;
  while (!stop_ && MonotonicMs() < deadline) {
    const ssize_t received = ::recv(socket_.get(), waste.data(), waste.size(), 0);
    if (received == 0 || (received < 0 && errno != EAGAIN && errno != EINTR)) return;
  }
}

// --- staging ---

// The free slot that has the most memory already. With both committed epochs
// still to be applied, the primary waits, not our memory.
Result<ReplicaSession::Slot*> ReplicaSession::ClaimSlot() {
  std::unique_lock lock(mutex_);
  Slot* chosen = nullptr;
  changed_.wait(lock, [&] {
    for (Slot& slot : slots_) {
      if (slot.state != Slot::State::kFree) continue;
      if (chosen == nullptr || slot.staging.resident_bytes() > chosen->staging.resident_bytes()) {
        chosen = &slot;
      }
    }
    return chosen != nullptr || stop_;
  });
  if (chosen == nullptr) {
    return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
  }
  chosen->state = Slot::State::kReceiving;
  return chosen;
}

// Keeps both slots' memory within max(floor, largest epoch): the other one's
// memory goes, once its epoch is applied.
Status ReplicaSession::MakeRoom(Slot& slot, uint64_t bytes) {
  const uint64_t need = slot.staging.used_bytes() + bytes;
  if (need <= slot.staging.resident_bytes()) return {};
  Slot& other = &slot == &slots_[0] ? slots_[1] : slots_[0];
  std::unique_lock lock(mutex_);
  const uint64_t budget = std::max({kStagingFloorBytes, largest_epoch_bytes_, need});
  if (need + other.staging.resident_bytes() <= budget) return {};
  changed_.wait(lock, [&] { return other.state == Slot::State::kFree || stop_; });
  if (stop_) return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
  other.staging.Trim(0);
  return {};
}

// --- apply thread ---

void ReplicaSession::ApplyLoop() {
  for (;;) {
    Slot* slot;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !apply_queue_.empty() || closing_; });
      if (closing_) return;
      slot = apply_queue_.front();
    }
    const double started_ms = MonotonicMs();
    replica_.Apply(slot->staging, closing_);
    FinishApply(*slot, MonotonicMs() - started_ms);
  }
}

void ReplicaSession::FinishApply(Slot& slot, double apply_ms) {
  const std::lock_guard lock(mutex_);
  if (closing_) return;
  slot.staging.Clear();
  // An outlier's memory is given back once epochs are smaller again.
  const uint64_t keep = std::max(kStagingFloorBytes, recent_epoch_bytes_);
  if (slot.staging.resident_bytes() / 2 > keep) slot.staging.Trim(keep);
  apply_queue_.pop_front();
  slot.state = Slot::State::kFree;
  last_apply_us_ = static_cast<uint64_t>(apply_ms * 1e3);
  Emit({.type = ReceiverEvent::Type::kApplied, .epoch = slot.epoch, .millis = apply_ms});
  changed_.notify_all();
}

// --- failover ---

Result<Receiver::Fenced> ReplicaSession::Fence() {
  const double started_ms = MonotonicMs();
  std::unique_lock lock(mutex_);
  if (!fenced_) {
    fenced_ = true;
    CutConnection(WireError::kFenced, "the backup no longer acknowledges");
    changed_.notify_all();
  }
  // Until the receive thread has let go: a base round writes to the replica.
  changed_.wait(lock, [this] { return (!connected_ && apply_queue_.empty()) || closing_; });
  if (closing_) return Error::Of(ErrorCode::kCancelled, "fence: session closed");
  if (!fence_result_) {
    fence_result_ =
        Receiver::Fenced{checkpoint_.epoch, MonotonicMs() - started_ms, partial_dropped_};
  }
  return *fence_result_;
}

Result<Receiver::Written> ReplicaSession::WriteState(const std::string& socket_path) {
  {
    const std::lock_guard lock(mutex_);
    if (!fence_result_) {
      return Error::Of(ErrorCode::kStateLoad, "device state: not fenced, the primary may be active");
    }
    if (checkpoint_.epoch == 0) {
      return Error::Of(ErrorCode::kStateLoad, "device state: no epoch was committed");
    }
  }
  // Fenced: nothing changes the checkpoint any more.
  const double started_ms = MonotonicMs();
  const std::array<std::span<const std::byte>, 2> parts{checkpoint_.prefix, checkpoint_.device};
  auto bytes = WriteToStandby(socket_path, parts);
  if (!bytes.ok()) return bytes.error();
  return Receiver::Written{bytes.value(), MonotonicMs() - started_ms};
}

}  // namespace holdfast
