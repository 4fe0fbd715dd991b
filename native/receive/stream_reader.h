// Buffered reads from the bulk connection: what is small comes through a
// buffer, several frames per system call; what is large goes straight to where
// it belongs.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "wire/digest.h"

namespace holdfast {

class StreamReader {
 public:
  // The socket is a blocking one with a receive timeout: after each, `stop` is
  // looked at. `last_byte_ms` is set to MonotonicMs() whenever bytes arrive.
  StreamReader(int socket, const std::atomic<bool>& stop, std::atomic<double>& last_byte_ms);

  // A receive timeout that suits: also the step in which a slow peer's bytes
  // become visible in `last_byte_ms`.
  static constexpr int kReceiveTimeoutMs = 100;

  // Exactly so many bytes, hashed on the way if there is a digest.
  Status Read(std::span<std::byte> to, Digest* digest);

  // The same into scattered places; `parts` is used up.
  Status ReadScattered(std::span<iovec> parts);

 private:
  // One recvmsg; returns how much came, at least 1.
  Result<size_t> Receive(iovec* parts, size_t count, int flags);
  size_t TakeBuffered(std::span<std::byte> to);

  static constexpr size_t kBufferBytes = 32 << 10;
  // Hashed while it is in the cache that recv filled.
  static constexpr size_t kChunkBytes = 256 << 10;

  const int socket_;
  const std::atomic<bool>& stop_;
  std::atomic<double>& last_byte_ms_;
  std::unique_ptr<std::byte[]> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

}  // namespace holdfast
