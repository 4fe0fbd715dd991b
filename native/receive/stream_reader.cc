#include "receive/stream_reader.h"

#include <limits.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/clock.h"

namespace holdfast {

StreamReader::StreamReader(int socket, const std::atomic<bool>& stop,
                           std::atomic<double>& last_byte_ms)
    : socket_(socket),
      stop_(stop),
      last_byte_ms_(last_byte_ms),
      buffer_(new std::byte[kBufferBytes]) {}

Result<size_t> StreamReader::Receive(std::span<iovec> parts, int flags) {
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  for (;;) {
    if (stop_.load(std::memory_order_acquire)) {
      return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
    }
    const ssize_t received = ::recvmsg(socket_, &message, flags);
    if (received > 0) {
      syscalls_++;
      last_byte_ms_.store(MonotonicMs(), std::memory_order_relaxed);
      return static_cast<size_t>(received);
    }
    if (received == 0) {
      return Error::Of(ErrorCode::kPeerLost, "bulk connection: primary closed it");
    }
    if (errno == EINTR || errno == EAGAIN) continue;
    return Error::FromErrno("recvmsg", "bulk connection: primary lost", ErrorCode::kPeerLost);
  }
}

bool StreamReader::AwaitBytes(int timeout_ms) const {
  if (buffered() > 0) return true;
  pollfd polled{socket_, POLLIN, 0};
  return ::poll(&polled, 1, timeout_ms) != 0;
}

Status StreamReader::FillBuffer() {
  iovec part{buffer_.get(), kBufferBytes};
  auto received = Receive({&part, 1}, 0);
  if (!received.ok()) return received.error();
  begin_ = 0;
  end_ = received.value();
  return {};
}

// Of the first parts as much as one call takes; what is behind them, too, if
// these are the last. Returns the bytes that came for the parts.
Result<size_t> StreamReader::ReceiveDirectly(std::span<const iovec> parts, size_t left,
                                             size_t bytes_behind, bool hashed) {
  const size_t bytes_max = hashed ? kHashedChunkBytes : std::numeric_limits<size_t>::max();
  window_.clear();
  size_t bytes = 0;
  for (const iovec& part : parts) {
    if (bytes == bytes_max || window_.size() + 1 == IOV_MAX) break;
    window_.push_back({part.iov_base, std::min(part.iov_len, bytes_max - bytes)});
    bytes += window_.back().iov_len;
  }
  if (bytes == left && bytes_behind > 0) window_.push_back({buffer_.get(), bytes_behind});
  // WAITALL: one call, however small the segments; the receive timeout bounds
  // how long bytes that are here stay unseen.
  auto received = Receive(window_, MSG_WAITALL);
  if (!received.ok()) return received.error();
  begin_ = 0;
  end_ = received.value() - std::min(bytes, received.value());
  return std::min(bytes, received.value());
}

size_t StreamReader::TakeBuffered(const iovec& to) {
  const size_t bytes = std::min(to.iov_len, end_ - begin_);
  std::memcpy(to.iov_base, buffer_.get() + begin_, bytes);
  begin_ += bytes;
  return bytes;
}

void StreamReader::Hash(const std::byte* bytes, size_t count, Digest& digest) {
  const double started_ms = MonotonicMs();
  digest.Update({bytes, count});
  digest_ms_ += MonotonicMs() - started_ms;
}

Status StreamReader::Read(std::span<iovec> parts, size_t bytes_behind, Digest* digest) {
  HF_ASSERT(bytes_behind <= kBufferBytes);
  size_t left = 0;
  for (const iovec& part : parts) left += part.iov_len;
  while (left > 0) {
    size_t came = 0;
    if (begin_ < end_) {
      came = TakeBuffered(parts[0]);
    } else if (left < kBufferBytes) {
      HF_TRY(FillBuffer());
    } else {
      auto direct = ReceiveDirectly(parts, left, bytes_behind, digest != nullptr);
      if (!direct.ok()) return direct.error();
      came = direct.value();
    }
    left -= came;
    // Past what came, and past parts that are empty.
    while (!parts.empty() && (came > 0 || parts[0].iov_len == 0)) {
      const size_t step = std::min(came, parts[0].iov_len);
      auto* at = static_cast<std::byte*>(parts[0].iov_base);
      if (digest != nullptr && step > 0) Hash(at, step, *digest);
      came -= step;
      parts[0] = {at + step, parts[0].iov_len - step};
      if (parts[0].iov_len == 0) parts = parts.subspan(1);
    }
  }
  return {};
}

}  // namespace holdfast
