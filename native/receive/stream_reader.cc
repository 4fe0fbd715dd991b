#include "receive/stream_reader.h"

#include <limits.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"

namespace holdfast {

StreamReader::StreamReader(int socket, const std::atomic<bool>& stop,
                           std::atomic<double>& last_byte_ms)
    : socket_(socket),
      stop_(stop),
      last_byte_ms_(last_byte_ms),
      buffer_(new std::byte[kBufferBytes]) {}

Result<size_t> StreamReader::Receive(iovec* parts, size_t count, int flags) {
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = count;
  for (;;) {
    if (stop_.load(std::memory_order_acquire)) {
      return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
    }
    const ssize_t received = ::recvmsg(socket_, &message, flags);
    if (received > 0) {
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

size_t StreamReader::TakeBuffered(std::span<std::byte> to) {
  const size_t bytes = std::min(to.size(), end_ - begin_);
  std::memcpy(to.data(), buffer_.get() + begin_, bytes);
  begin_ += bytes;
  return bytes;
}

Status StreamReader::Read(std::span<std::byte> to, Digest* digest) {
  while (!to.empty()) {
    size_t bytes = 0;
    if (begin_ < end_) {
      bytes = TakeBuffered(to);
    } else if (to.size() < kBufferBytes) {
      iovec part{buffer_.get(), kBufferBytes};
      auto received = Receive(&part, 1, 0);
      if (!received.ok()) return received.error();
      begin_ = 0;
      end_ = received.value();
      continue;
    } else {
      // WAITALL: one call per chunk, however small the segments; the receive
      // timeout bounds how long bytes that are here stay unseen.
      iovec part{to.data(), std::min(to.size(), kChunkBytes)};
      auto received = Receive(&part, 1, MSG_WAITALL);
      if (!received.ok()) return received.error();
      bytes = received.value();
    }
    if (digest != nullptr) digest->Update(to.first(bytes));
    to = to.subspan(bytes);
  }
  return {};
}

Status StreamReader::ReadScattered(std::span<iovec> parts) {
  while (!parts.empty()) {
    size_t bytes = 0;
    if (begin_ < end_) {
      bytes = TakeBuffered({static_cast<std::byte*>(parts[0].iov_base), parts[0].iov_len});
    } else {
      auto received =
          Receive(parts.data(), std::min<size_t>(parts.size(), IOV_MAX), MSG_WAITALL);
      if (!received.ok()) return received.error();
      bytes = received.value();
    }
    while (!parts.empty() && bytes >= parts[0].iov_len) {
      bytes -= parts[0].iov_len;
      parts = parts.subspan(1);
    }
    if (bytes > 0) {
      parts[0].iov_base = static_cast<std::byte*>(parts[0].iov_base) + bytes;
      parts[0].iov_len -= bytes;
    }
  }
  return {};
}

}  // namespace holdfast
