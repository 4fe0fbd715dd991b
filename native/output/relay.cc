#include "output/relay.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <utility>

#include "base/unix_socket.h"
#include "output/peer_socket.h"

namespace holdfast {
namespace {

constexpr size_t kInboundBytes = 1 << 20;
// What PREPARE reads before it answers: all that the socket can hold. The guest
// runs, so there may be no end to it.
constexpr uint64_t kPrepareBytesMax = 8 << 20;
// Whoever paused it may be gone: the guest's network must not be for it.
constexpr double kPauseMsMax = 2000;

enum Tag : uint32_t { kStop, kQemu, kTarget, kListener, kController };

}  // namespace

Result<std::unique_ptr<Relay>> Relay::Start(Options options) {
  auto held = HeldFrames::Create(options.held_bytes_max, options.hold);
  if (!held.ok()) return held.error();
  auto inbound = FrameRing::Create(kInboundBytes);
  if (!inbound.ok()) return inbound.error();
  std::unique_ptr<Relay> relay(
      new Relay(std::move(options), std::move(held).value(), std::move(inbound).value()));
  if (!relay->poller_.valid()) return Error::FromErrno("epoll_create1", "relay");
  if (!relay->stop_watch_.Add(relay->poller_, relay->stop_.fd(), EPOLLIN)) {
    return Error::FromErrno("epoll_ctl", "relay");
  }
  const Status target = relay->options_.target->Open();
  if (!target.ok() && !relay->options_.target->MayAppear(target.error())) return target.error();
  HF_TRY(relay->control_.Listen(relay->poller_));
  relay->thread_ = Thread("hf-relay", [self = relay.get()] { self->Loop(); });
  return relay;
}

Relay::Relay(Options options, HeldFrames held, FrameRing inbound)
    : options_(std::move(options)),
      held_(std::move(held)),
      inbound_(std::move(inbound)),
      stop_watch_(kStop),
      qemu_watch_(kQemu),
      target_watch_(kTarget),
      control_(options_.control_socket, kListener, kController) {}

Relay::~Relay() {
  Stop();
  Join();
}

RelayStats Relay::Stats() const {
  const std::lock_guard lock(published_mutex_);
  return published_;
}

void Relay::Loop() {
  std::array<epoll_event, 8> events;
  qemu_retry_.Begin(MonotonicMs());
  target_retry_.Begin(MonotonicMs());
  if (options_.target->open()) WatchTarget();
  while (!stop_.cancelled()) {
    Connect();
    SendReleased();
    SendInbound();
    TellOutput();
    control_.Flush();
    OnController();
    WatchAgain();
    Publish();
    for (const epoll_event& event : poller_.Wait(events, WaitMs())) Dispatch(event);
  }
  Tell({.type = RelayEvent::Type::kEnded});
}

// An event may be of a descriptor that an earlier one of the same turn has
// closed: the handlers look.
void Relay::Dispatch(const epoll_event& event) {
  switch (event.data.u32) {
    case kQemu:
      return OnQemu(event.events);
    case kTarget:
      return OnTarget(event.events);
    case kListener:
      if (!control_.Accept()) return;
      Tell({.type = RelayEvent::Type::kController, .connected = true});
      controller_told_ = true;
      control_.Send(ControlMessage{
          .type = static_cast<uint32_t>(ControlType::kHello),
          .value = uint64_t{kRelayControlVersion} << 32 | (held_.holding() ? 1 : 0)});
      held_.ForgetOutput();
      return;
    case kController:
      return control_.Receive([this](const ControlMessage& request) { return OnRequest(request); });
    default:
      return;  // kStop: the loop's condition
  }
}

void Relay::Connect() {
  const double now_ms = MonotonicMs();
  if (!options_.target->open() && target_retry_.Due(now_ms)) OpenTarget();
  if (qemu_.valid() || !qemu_retry_.Due(now_ms)) return;
  auto socket = ConnectUnixNow(options_.qemu_socket);
  if (!socket.ok() || !qemu_watch_.Add(poller_, socket.value().get(), 0)) {
    return qemu_retry_.Failed(now_ms);
  }
  qemu_ = std::move(socket).value();
  qemu_seen_ = false;
  qemu_blocked_ = false;
  paused_until_ms_ = 0;
  Tell({.type = RelayEvent::Type::kConnected});
}

int Relay::WaitMs() const {
  if (more_to_send()) return 0;
  double next_ms = HUGE_VAL;
  if (!qemu_.valid()) next_ms = std::min(next_ms, qemu_retry_.next_ms);
  if (!options_.target->open()) next_ms = std::min(next_ms, target_retry_.next_ms);
  if (Paused()) next_ms = std::min(next_ms, paused_until_ms_);
  if (next_ms == HUGE_VAL) return -1;
  return std::max(0, static_cast<int>(std::ceil(next_ms - MonotonicMs())));
}

bool Relay::more_to_send() const {
  return !target_blocked_ && held_.ring().head().position < held_.released().position;
}

void Relay::SendReleased() {
  FrameRing& ring = held_.ring();
  const FrameMark& end = held_.released();
  if (ring.head().position == end.position) return;
  if (options_.target->open() && !target_blocked_) {
    const SendOutcome sent = options_.target->Send(ring, end);
    counts_.out_frames += sent.frames;
    counts_.out_bytes += sent.bytes;
    counts_.dropped_frames += sent.dropped;
    if (sent.dropped > 0) counts_.last_drop_errno = static_cast<uint32_t>(sent.drop_errno);
    target_blocked_ = sent.blocked;
    if (sent.lost_errno != 0) LoseTarget(sent.lost_errno);
  }
  if (options_.target->open()) return;
  counts_.dropped_frames += ring.Consume(end.position - ring.head().position);
  counts_.last_drop_errno = static_cast<uint32_t>(target_errno_);
}

void Relay::SendInbound() {
  const uint64_t bytes = inbound_.whole().position - inbound_.head().position;
  if (bytes == 0) return;
  if (!qemu_.valid()) {
    inbound_.Consume(bytes);
    return;
  }
  if (qemu_blocked_) return;
  RingParts parts = inbound_.Upto(inbound_.whole().position);
  msghdr message{};
  message.msg_iov = parts.parts.data();
  message.msg_iovlen = static_cast<size_t>(parts.count);
  const ssize_t sent = ::sendmsg(qemu_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && errno != EAGAIN) return LoseQemu();
  qemu_blocked_ = sent < static_cast<ssize_t>(bytes);
  if (sent < 0) return;
  const uint64_t frames = inbound_.Consume(static_cast<uint64_t>(sent));
  counts_.in_frames += frames;
  counts_.in_bytes += static_cast<uint64_t>(sent) - kPacketLengthBytes * frames;
}

void Relay::TellOutput() {
  if (!control_.connected() || !held_.TakeOutput()) return;
  control_.Send(ControlMessage{.type = static_cast<uint32_t>(ControlType::kOutput)});
}

// A controller that is gone, however it went, is told once.
void Relay::OnController() {
  if (controller_told_ == control_.connected()) return;
  controller_told_ = control_.connected();
  Tell({.type = RelayEvent::Type::kController, .connected = controller_told_});
}

void Relay::WatchAgain() {
  const bool full = held_.full();
  const bool stalled = qemu_.valid() && full;
  if (stalled && stalled_since_ms_ == 0) {
    stalled_since_ms_ = MonotonicMs();
    counts_.stalls++;
  } else if (!stalled && stalled_since_ms_ != 0) {
    stalled_ms_ += MonotonicMs() - std::exchange(stalled_since_ms_, 0);
  }
  if (qemu_.valid()) {
    qemu_watch_.Set((full ? 0u : EPOLLIN) | (qemu_blocked_ ? EPOLLOUT : 0u));
  }
  if (options_.target->open()) {
    const bool room = !Paused() && inbound_.room() >= kPacketLengthBytes + kPacketBytesMax;
    target_watch_.Set((room ? EPOLLIN : 0u) | (target_blocked_ ? EPOLLOUT : 0u));
  }
}

void Relay::Publish() {
  RelayStats stats = counts_;
  stats.held_frames = held_.frames();
  stats.held_bytes = held_.bytes();
  stats.boundary_frames = held_.boundary_frames();
  stats.held_bytes_peak = held_.bytes_peak();
  const bool stalled = stalled_since_ms_ != 0;
  const double stalled_ms = stalled_ms_ + (stalled ? MonotonicMs() - stalled_since_ms_ : 0);
  stats.stalled_us = static_cast<uint64_t>(stalled_ms * 1e3);
  stats.flags = counts_.flags | (held_.holding() ? kRelayHolding : 0u) |
                (qemu_.valid() ? kRelayQemuConnected : 0u) |
                (options_.target->open() ? kRelayTargetConnected : 0u) |
                (stalled ? kRelayStalled : 0u);
  const std::lock_guard lock(published_mutex_);
  published_ = stats;
}

void Relay::OnQemu(uint32_t events) {
  if ((events & EPOLLOUT) != 0) qemu_blocked_ = false;
  if (!qemu_.valid()) return;
  if ((events & EPOLLIN) != 0) ReadQemu(false);
  // At the bound its end is not read from the socket, and would be told again and again.
  if ((events & (EPOLLHUP | EPOLLERR)) != 0 && qemu_.valid() && held_.full()) LoseQemu();
}

bool Relay::ReadQemu(bool past_bound) {
  if (!qemu_.valid()) return false;
  RingParts room = held_.Room(past_bound);
  if (room.bytes == 0) return false;
  const ssize_t bytes = ::readv(qemu_.get(), room.parts.data(), room.count);
  if (bytes < 0 && errno == EAGAIN) return false;
  if (bytes <= 0 || !held_.Received(static_cast<uint64_t>(bytes))) {
    LoseQemu();
    return false;
  }
  if (!std::exchange(qemu_seen_, true) && options_.qemu_socket_bytes > 0 &&
      FitPeerSocket(qemu_.get(), options_.qemu_socket, options_.qemu_socket_bytes).ok()) {
    counts_.flags |= kRelaySocketWide;
  }
  return true;
}

void Relay::LoseQemu() {
  qemu_watch_.Remove();
  qemu_.Close();
  qemu_retry_.Begin(MonotonicMs());
  qemu_retry_.Failed(MonotonicMs());  // so that one who closes at once is not asked at once
  counts_.flags &= ~uint32_t{kRelaySocketWide};
  // A frame of which QEMU has a part will not be continued.
  inbound_.Consume(inbound_.whole().position - inbound_.head().position);
  const uint64_t discarded = held_.Discard();
  counts_.discarded_frames += static_cast<uint32_t>(discarded);
  Tell({.type = RelayEvent::Type::kDisconnected, .frames = discarded});
}

bool Relay::SwitchQemu() {
  while (ReadQemu(true)) {
  }
  if (qemu_.valid()) LoseQemu();
  qemu_retry_.Begin(MonotonicMs());
  Connect();
  return qemu_.valid();
}

void Relay::OpenTarget() {
  const Status opened = options_.target->Open();
  if (opened.ok()) return WatchTarget();
  target_retry_.Failed(MonotonicMs());
  if (std::exchange(target_told_lost_, true)) return;
  target_errno_ = opened.error().sys_errno;
  Tell({.type = RelayEvent::Type::kTargetLost, .sys_errno = target_errno_});
}

void Relay::WatchTarget() {
  if (!target_watch_.Add(poller_, options_.target->fd(), 0)) return LoseTarget(errno);
  target_blocked_ = false;
  target_told_lost_ = false;
  Tell({.type = RelayEvent::Type::kTargetFound});
}

void Relay::OnTarget(uint32_t events) {
  if ((events & EPOLLOUT) != 0) target_blocked_ = false;
  if (!options_.target->open() || Paused()) return;
  const ReceiveOutcome received = options_.target->Receive(inbound_);
  if (received.lost_errno != 0) return LoseTarget(received.lost_errno);
  if ((events & (EPOLLHUP | EPOLLERR)) != 0) LoseTarget(EPIPE);
}

void Relay::LoseTarget(int sys_errno) {
  target_watch_.Remove();
  options_.target->Close();
  target_blocked_ = false;
  target_told_lost_ = true;
  target_errno_ = sys_errno;
  inbound_.Truncate(inbound_.whole());
  target_retry_.Begin(MonotonicMs());
  target_retry_.Failed(MonotonicMs());
  Tell({.type = RelayEvent::Type::kTargetLost, .sys_errno = sys_errno});
}

bool Relay::OnRequest(const ControlMessage& request) {
  ControlMessage answer{.type = request.type | kControlAnswer};
  switch (static_cast<ControlType>(request.type)) {
    case ControlType::kHold:
      answer.value = held_.Hold();
      break;
    case ControlType::kPrepare: {
      answer.value = held_.Prepare();
      const uint64_t before = held_.bytes();
      while (held_.bytes() - before < kPrepareBytesMax && ReadQemu(false)) {
      }
      break;
    }
    case ControlType::kBoundary:
      while (ReadQemu(true)) {
      }
      answer.value = held_.Boundary();
      break;
    case ControlType::kRelease:
      answer.value = held_.Release();
      break;
    case ControlType::kOpen:
      answer.value = held_.Open();
      break;
    case ControlType::kPause:
      paused_until_ms_ = MonotonicMs() + kPauseMsMax;
      break;
    case ControlType::kSwitch:
      answer.value = SwitchQemu() ? 1 : 0;
      break;
    case ControlType::kStats:
      Publish();
      control_.Send(answer);
      control_.Send(published_);
      return true;
    default:
      return false;
  }
  control_.Send(answer);
  return true;
}

}  // namespace holdfast
