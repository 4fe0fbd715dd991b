#include "send/completion_sender.h"

#include <limits>

#include "base/clock.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// With so many in flight, notifications are worth a look without being waited for.
constexpr size_t kReapCalls = 32;
// While pages are in flight, lack of buffers passes: so often, so long.
constexpr int kNoBuffersTriesMax = 8;
constexpr int kNoBuffersWaitMs = 20;

uint64_t BytesOf(std::span<const iovec> parts) {
  uint64_t bytes = 0;
  for (const iovec& part : parts) bytes += part.iov_len;
  return bytes;
}

}  // namespace

Status CompletionSender::Send(const PageSource& source, std::span<const Extent> extents,
                              StreamSocket& socket) {
  if (readiness_ == Readiness::kUnknown) {
    const Status ready = Prepare(socket);
    readiness_ = ready.ok() ? Readiness::kReady : Readiness::kUnsupported;
    if (!ready.ok()) unsupported_ = ready.error().message;
  }
  if (readiness_ == Readiness::kUnsupported) {
    return Error::Of(ErrorCode::kUnsupported, unsupported_);
  }
  parts_.clear();
  for (const Extent& extent : extents) {
    parts_.push_back({const_cast<std::byte*>(source.base + extent.offset), extent.bytes});
  }
  if (ledger(socket).calls_in_flight() >= kReapCalls) Reap(socket);
  TakeNotice(socket);
  if (BytesOf(parts_) < kReferenceBytesMin) return SendPlain(parts_, socket);
  Status sent = SendByReference(source, parts_, socket);
  TakeNotice(socket);
  return sent;
}

Status CompletionSender::SendByReference(const PageSource& source, std::span<iovec> parts,
                                         StreamSocket& socket) {
  bool moved = false;
  int tries = 0;
  while (!parts.empty()) {
    HF_TRY(socket.CheckCancelled());
    if (!policy_.asking()) return SendPlain(parts, socket);
    HF_TRY(AwaitRoom(socket));
    const int64_t taken = Attempt(source, parts, socket);
    if (taken >= 0) {
      parts = WithoutFirst(parts, static_cast<uint64_t>(taken));
      moved = true;
      tries = 0;
      continue;
    }
    switch (-taken) {
      case EINTR: break;
      case EAGAIN: HF_TRY(socket.WaitWritable()); break;
      // Its fellow ENOMEM is how a full account of locked memory shows in the ring.
      case ENOBUFS:
      case ENOMEM: {
        auto retry = RetryWithoutBuffers(tries, socket);
        if (!retry.ok()) return retry.error();
        if (!retry.value()) policy_.Refused();
        break;
      }
      // Memory without pages to lend, or a socket that takes none.
      case EFAULT:
      case EOPNOTSUPP:
        if (!moved) {
          return Error{ErrorCode::kUnsupported, static_cast<int>(-taken), "sendmsg",
                       "page source"};
        }
        [[fallthrough]];
      default:
        HF_TRY(socket.CheckCancelled());
        errno = static_cast<int>(-taken);
        return socket.LostBy("sendmsg");
    }
  }
  return {};
}

Status CompletionSender::SendPlain(std::span<iovec> parts, StreamSocket& socket) {
  const uint64_t bytes = BytesOf(parts);
  HF_TRY(socket.SendAll(parts, true));
  plain_bytes_ += bytes;
  policy_.SentPlain(bytes);
  return {};
}

Status CompletionSender::AwaitRoom(StreamSocket& socket) {
  const CompletionLedger& in_flight = ledger(socket);
  if (in_flight.calls_in_flight() < kCallsInFlightMax &&
      in_flight.bytes_in_flight() < kBytesInFlightMax) {
    return {};
  }
  auto room = AwaitBelow(kCallsInFlightMax, kBytesInFlightMax, kPeerSilenceMsMax, socket);
  if (!room.ok()) return room.error();
  if (!room.value()) {
    return Error{ErrorCode::kPeerLost, ETIMEDOUT, "poll",
                 Text("bulk connection: peer took nothing for %d ms", kPeerSilenceMsMax)};
  }
  return {};
}

// True if there is something to retry for.
Result<bool> CompletionSender::RetryWithoutBuffers(int& tries, StreamSocket& socket) {
  if (Reap(socket)) return true;
  const size_t calls = ledger(socket).calls_in_flight();
  if (calls == 0 || tries++ == kNoBuffersTriesMax) return false;
  auto fewer = AwaitBelow(calls, std::numeric_limits<uint64_t>::max(), kNoBuffersWaitMs, socket);
  if (!fewer.ok()) return fewer.error();
  return true;
}

// Waits until less is in flight than both; false if the time is up first.
Result<bool> CompletionSender::AwaitBelow(size_t calls, uint64_t bytes, double timeout_ms,
                                          StreamSocket& socket) {
  const double deadline_ms = MonotonicMs() + timeout_ms;
  for (;;) {
    const bool reaped = Reap(socket);
    if (ledger(socket).calls_in_flight() < calls && ledger(socket).bytes_in_flight() < bytes) {
      return true;
    }
    if (reaped) continue;
    const double left_ms = deadline_ms - MonotonicMs();
    if (left_ms <= 0) return false;
    HF_TRY(AwaitNotification(socket, static_cast<int>(left_ms) + 1));
  }
}

Status CompletionSender::Finish(StreamSocket& socket) {
  if (readiness_ != Readiness::kReady) return {};
  auto empty = AwaitBelow(1, 1, kPeerSilenceMsMax, socket);
  TakeNotice(socket);
  if (!empty.ok()) return empty.error();
  if (!empty.value()) {
    return Error{ErrorCode::kPeerLost, ETIMEDOUT, "poll",
                 Text("bulk connection: the kernel still holds pages after %d ms",
                      kPeerSilenceMsMax)};
  }
  return {};
}

void CompletionSender::TakeNotice(StreamSocket& socket) {
  reported_ = ledger(socket).totals();
  policy_.Observe(reported_);
}

SenderCounters CompletionSender::counters() const {
  return {reported_.reference_bytes, reported_.copied_bytes + plain_bytes_,
          reported_.completions,
          policy_.fallbacks() + (readiness_ == Readiness::kUnsupported ? 1 : 0)};
}

}  // namespace holdfast
