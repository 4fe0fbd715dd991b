// Opening and closing, the connection, applying, and the failover. What the
// receive threads do with frames is in session_receive.cc.

#include "receive/session.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstring>

#include "base/clock.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// After ERROR, what the primary still sends is thrown away so long, so that
// the kernel's reset does not overtake the frame.
constexpr int kLingerMsMax = 300;
// In between it is looked whether the session was stopped.
constexpr int kLingerStepMs = 50;

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

WireLimits LimitsOf(const Receiver::Session& options,
                    std::span<const uint64_t> reference_disks = {}) {
  // Of each page the latest content counts: more than RAM cannot be needed.
  return {options.page_size, options.ram_bytes,
          std::min(options.epoch_bytes_max, options.ram_bytes), options.device_bytes_max,
          reference_disks};
}

}  // namespace

Result<std::unique_ptr<ReplicaSession>> ReplicaSession::Open(const Receiver::Session& options,
                                                             const Receiver::EventSink& sink,
                                                             std::atomic<double>& last_byte_ms) {
  HF_TRY(CheckOptions(options));
  const uint64_t staging_bytes_max = EpochBytesSentMax(LimitsOf(options));
  auto first = EpochStaging::Reserve(staging_bytes_max);
  if (!first.ok()) return first.error();
  auto second = EpochStaging::Reserve(staging_bytes_max);
  if (!second.ok()) return second.error();
  auto replica =
      Replica::Create(options.ram_path, options.ram_bytes, options.page_size, options.sparse);
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
      disks_(options.disks != nullptr ? options.disks->NewSession() : nullptr),
      reference_disks_(options.reference_disks),
      decoder_(LimitsOf(options, reference_disks_.bytes())),
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
  const Status sound = CheckHello(hello);
  if (!sound.ok()) return Refusal{WireError::kProtocol, sound.error().message};
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

// --- the connection ---

std::optional<ReplicaSession::Refusal> ReplicaSession::Adopt(Descriptor& socket,
                                                             const HelloBody& hello) {
  const std::lock_guard lock(mutex_);
  if (fenced_) return Refusal{WireError::kFenced, "the backup no longer acknowledges"};
  if (closing_) return Refusal{WireError::kClosing, "the session is closing"};
  if (hello.of_disks()) return JoinDisks(socket, hello);
  if (hello.stream != 0) return Join(socket, hello);
  if (connected_) return Refusal{WireError::kBusy, "the session has a bulk connection"};
  // No receive thread is at work: the decoder is free.
  decoder_.NewConnection(hello.streams);
  streams_count_ = hello.streams;
  link_++;
  verify_ = options_.verify && (hello.flags & HelloBody::kFlagVerify) != 0;
  ending_ = refusal_sent_ = disks_synced_ = false;
  link_error_.reset();
  cut_ = false;
  last_byte_ms_.store(MonotonicMs(), std::memory_order_relaxed);
  PrepareSocket(socket.get());
  streams_[0] = std::make_unique<Stream>(0, std::move(socket), cut_, last_byte_ms_);
  GreetBack(streams_[0]->socket.get());
  connected_ = true;
  Emit({.type = ReceiverEvent::Type::kConnected});
  changed_.notify_all();
  return std::nullopt;
}

// Under mutex_.
std::optional<ReplicaSession::Refusal> ReplicaSession::Join(Descriptor& socket,
                                                            const HelloBody& hello) {
  const bool belongs = connected_ && !ending_ && hello.link == link_ &&
                       hello.streams == streams_count_ && streams_[hello.stream] == nullptr;
  if (!belongs) {
    return Refusal{WireError::kBusy, Text("stream %u belongs to no connection", hello.stream)};
  }
  PrepareSocket(socket.get());
  auto& stream = streams_[hello.stream];
  stream = std::make_unique<Stream>(hello.stream, std::move(socket), cut_, last_byte_ms_);
  GreetBack(stream->socket.get());
  stream->thread = Thread("hf-receive", [this, self = stream.get()] { Serve(*self); });
  return std::nullopt;
}

// Under mutex_.
std::optional<ReplicaSession::Refusal> ReplicaSession::JoinDisks(Descriptor& socket,
                                                                 const HelloBody& hello) {
  if (disks_ == nullptr) return Refusal{WireError::kProtocol, "HELLO frame: the session has no disks"};
  if (!connected_ || ending_ || hello.link != link_ || disk_stream_ != nullptr) {
    return Refusal{WireError::kBusy, "the disk stream belongs to no connection"};
  }
  PrepareSocket(socket.get());
  // So that an answer that nobody reads does not keep its thread for ever.
  const timeval step{0, StreamReader::kReceiveTimeoutMs * 1000};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &step, sizeof step);
  disk_stream_ = std::make_unique<DiskStream>(std::move(socket), last_byte_ms_);
  GreetBack(disk_stream_->socket.get());
  disk_stream_->thread = Thread("hf-disk-receive", [this, self = disk_stream_.get()] { ServeDisks(*self); });
  return std::nullopt;
}

// On the disk stream's thread; the listener at the other end reads at all times.
Status ReplicaSession::AnswerOnDisks(DiskStream& stream, std::span<const std::byte> frame) {
  const std::lock_guard lock(stream.send_mutex);
  while (!frame.empty()) {
    const ssize_t sent = ::send(stream.socket.get(), frame.data(), frame.size(), MSG_NOSIGNAL);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN) && !*stream.cut) continue;
    if (sent < 0) {
      return Error::FromErrno("send", "disk stream: answering the primary", ErrorCode::kPeerLost);
    }
    frame = frame.subspan(static_cast<size_t>(sent));
  }
  return {};
}

void ReplicaSession::GreetPages(int fd) {
  const std::lock_guard lock(mutex_);
  GreetBack(fd);
}

// Under mutex_. A failure shows when the receive thread reads.
void ReplicaSession::GreetBack(int fd) const {
  const uint32_t verify = verify_ ? HelloBody::kFlagVerify : 0;
  const HelloOkBody ok{.flags = verify | HelloOkBody::kFlagPrefixAhead, .link = link_};
  (void)Answer(fd, FrameType::kHelloOk, 0, EncodeHelloOk(ok));
}

// The primary reads each answer before it asks again, so there is always room;
// one that does not read must not hold the mutex under which this is called.
Status ReplicaSession::Answer(int fd, FrameType type, uint64_t epoch,
                              std::span<const std::byte> body, std::span<const std::byte> table) {
  const HeaderBytes head = EncodeHeader({.type = type,
                                         .epoch = epoch,
                                         .table_bytes = static_cast<uint32_t>(table.size()),
                                         .payload_bytes = body.size()});
  std::vector<std::byte> frame(head.begin(), head.end());
  frame.insert(frame.end(), table.begin(), table.end());
  frame.insert(frame.end(), body.begin(), body.end());
  const ssize_t sent = ::send(fd, frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(frame.size())) return {};
  if (sent >= 0) errno = EAGAIN;
  return Error::FromErrno("send", "bulk connection: answering the primary",
                          ErrorCode::kPeerLost);
}

// Under mutex_. On every stream: the primary may be listening on any. True if
// all of them took it.
bool ReplicaSession::SendError(WireError code, const std::string& text) {
  const std::string frame = EncodeErrorFrame(code, text);
  // Not into the middle of another frame.
  std::unique_lock<std::mutex> whole_frames;
  if (disk_stream_ != nullptr) whole_frames = std::unique_lock(disk_stream_->send_mutex, std::try_to_lock);
  bool sent_to_all = true;
  for (const int socket : Sockets()) {
    const bool of_disks = disk_stream_ != nullptr && socket == disk_stream_->socket.get();
    if (of_disks && !whole_frames.owns_lock()) continue;
    const ssize_t sent =
        ::send(socket, frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent != static_cast<ssize_t>(frame.size())) sent_to_all = false;
  }
  return sent_to_all;
}

// Under mutex_.
std::vector<int> ReplicaSession::Sockets() const {
  std::vector<int> sockets;
  for (const auto& stream : streams_) {
    if (stream != nullptr) sockets.push_back(stream->socket.get());
  }
  if (disk_stream_ != nullptr) sockets.push_back(disk_stream_->socket.get());
  return sockets;
}

// Under mutex_.
void ReplicaSession::CutAll() {
  cut_ = true;
  if (disk_stream_ != nullptr) *disk_stream_->cut = true;
}

// A stream's end is the connection's. Where the primary is still to read why,
// the other threads notice within a receive timeout, else at once.
void ReplicaSession::Lose(Error error) {
  const std::lock_guard lock(mutex_);
  if (link_error_) return;
  CutAll();
  if (!stopped() && error.code != ErrorCode::kPeerLost) {
    refusal_sent_ = SendError(WireErrorOf(error.code), error.message);
  } else {
    ShutDown();
  }
  link_error_ = std::move(error);
  changed_.notify_all();
}

// Under mutex_.
void ReplicaSession::ShutDown() {
  for (const int socket : Sockets()) ::shutdown(socket, SHUT_RDWR);
}

// On the session's receive thread, when its own stream has ended.
void ReplicaSession::HangUp() {
  bool refusing = false;
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    refusing = refusal_sent_;
  }
  for (const auto& stream : streams_) {
    if (stream != nullptr) stream->thread.Join();
  }
  if (disk_stream_ != nullptr) disk_stream_->thread.Join();
  for (const auto& stream : streams_) {
    if (stream != nullptr) stream->disk_reads.Stop();
  }
  if (refusing) LingerForError();
  // Destroyed without the mutex: a takeover does not wait for who reads a disk that hangs.
  decltype(streams_) ended;
  const std::lock_guard lock(mutex_);
  uint64_t dropped_epoch = 0;
  if (incoming_.slot != nullptr) {
    partial_dropped_ = true;
    dropped_epoch = incoming_.slot->epoch;
    Free(*incoming_.slot);
  }
  incoming_ = {};
  Error error = *std::move(link_error_);
  if (fenced_) error = Error::Of(ErrorCode::kFenced, "bulk connection: ended by fencing");
  if (closing_) error = Error::Of(ErrorCode::kCancelled, "bulk connection: session closed");
  Emit({.type = ReceiverEvent::Type::kDisconnected,
        .epoch = dropped_epoch,
        .error = std::move(error)});
  ended.swap(streams_);
  disk_stream_.reset();
  connected_ = false;
  changed_.notify_all();
}

// Under mutex_. Makes the receive threads give up, wherever they are.
void ReplicaSession::CutConnection(WireError code, const char* text) {
  CutAll();
  if (!connected_) return;
  SendError(code, text);
  ShutDown();
}

void ReplicaSession::LingerForError() {
  const double deadline = MonotonicMs() + kLingerMsMax;
  std::vector<pollfd> open;
  for (const int socket : Sockets()) {
    ::shutdown(socket, SHUT_WR);
    open.push_back({socket, POLLIN, 0});
  }
  std::array<std::byte, 16 << 10> waste;
  while (!open.empty() && !stopped()) {
    const double left_ms = deadline - MonotonicMs();
    if (left_ms <= 0) return;
    const int ready = ::poll(open.data(), open.size(),
                             std::min(kLingerStepMs, static_cast<int>(left_ms) + 1));
    if (ready < 0 && errno != EINTR) return;
    if (ready <= 0) continue;
    std::erase_if(open, [&waste](const pollfd& polled) {
      if (polled.revents == 0) return false;
      const ssize_t received = ::recv(polled.fd, waste.data(), waste.size(), MSG_DONTWAIT);
      return received == 0 || (received < 0 && errno != EAGAIN && errno != EINTR);
    });
  }
}

// --- apply thread ---

void ReplicaSession::ApplyLoop() {
  for (;;) {
    Slot* slot;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] {
        const bool allowed = !options_.gated || applies_allowed_ > 0 || fenced_;
        return (!apply_queue_.empty() && allowed) || closing_;
      });
      if (closing_) return;
      if (applies_allowed_ > 0) applies_allowed_--;
      slot = apply_queue_.front();
    }
    const double started_ms = MonotonicMs();
    slot->staging.OrderBySlice();
    replica_.Apply(slot->staging, closing_);
    FinishApply(*slot, MonotonicMs() - started_ms);
  }
}

void ReplicaSession::AllowApplies(uint64_t epochs) {
  const std::lock_guard lock(mutex_);
  applies_allowed_ += epochs;
  changed_.notify_all();
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
  // The same moment for the disks: nothing of theirs is committed after it.
  if (disks_ != nullptr) HF_TRY(disks_->Fence());
  // Until the receive threads have let go: a base round writes to the replica.
  changed_.wait(lock, [this] { return (!connected_ && apply_queue_.empty()) || closing_; });
  if (closing_) return Error::Of(ErrorCode::kCancelled, "fence: session closed");
  if (disks_ != nullptr) {
    lock.unlock();
    HF_TRY(disks_->AwaitApplied([this] { return closing_.load(); }));
    lock.lock();
  }
  if (!fence_result_) {
    fence_result_ =
        Receiver::Fenced{checkpoint_.epoch, MonotonicMs() - started_ms, partial_dropped_};
  }
  return *fence_result_;
}

// Whatever the session is at: nobody waits for this one.
Result<uint64_t> ReplicaSession::Feed(StandbyStream& standby) {
  Prefix prefix;
  {
    const std::lock_guard lock(mutex_);
    prefix = checkpoint_.epoch > 0 ? checkpoint_.prefix : kept_prefix_;
  }
  if (prefix.bytes != nullptr) HF_TRY(standby.Begin(prefix.bytes));
  return prefix.number;
}

Result<Receiver::Written> ReplicaSession::WriteState(StandbyStream& standby, bool follow_clock) {
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
  // A copy: another standby may need the checkpoint once more, and later.
  std::vector<std::byte> device = checkpoint_.device;
  std::optional<int64_t> clock_advanced_ns;
  if (follow_clock) {
    clock_advanced_ns = AdvanceStandbyClock(device, checkpoint_.commit, HostClock::Now());
  }
  auto bytes = standby.Finish(checkpoint_.prefix.bytes, device);
  if (!bytes.ok()) return bytes.error();
  return Receiver::Written{bytes.value(), MonotonicMs() - started_ms, clock_advanced_ns};
}

}  // namespace holdfast
