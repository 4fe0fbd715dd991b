// Reads from one bulk connection with as few system calls as it takes.
//
// What is large goes straight to where it belongs, table and pages in one call
// with the header of the frame behind them; what is small comes through a
// buffer, several frames per call.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "wire/digest.h"

namespace holdfast {

struct FilePart {
  uint64_t offset = 0;  // in the file
  uint64_t bytes = 0;
};

class StreamReader {
 public:
  // The socket is a blocking one with a receive timeout: after each, `stop` is
  // looked at. `last_byte_ms` is set to MonotonicMs() whenever bytes arrive.
  StreamReader(int socket, const std::atomic<bool>& stop, std::atomic<double>& last_byte_ms);

  // A receive timeout that suits: also the step in which a slow peer's bytes
  // become visible in `last_byte_ms`.
  static constexpr int kReceiveTimeoutMs = 100;

  // Exactly so many bytes into `parts`, which are used up; hashed on the way if
  // there is a digest. `bytes_behind`: so many more are certain to follow these
  // without an answer of ours, and are fetched along with them.
  Status Read(std::span<iovec> parts, size_t bytes_behind, Digest* digest);
  Status Read(std::span<std::byte> to, size_t bytes_behind, Digest* digest) {
    iovec part{to.data(), to.size()};
    return Read({&part, 1}, bytes_behind, digest);
  }

  // The same into places of a file on tmpfs, past every mapping (read_to_file.cc).
  Status ReadToFile(int file, std::span<const FilePart> parts);

  // What has come already, without being asked for.
  size_t buffered() const { return end_ - begin_; }
  // False: nothing to be read within this time.
  bool AwaitBytes(int timeout_ms) const;

  // Since the connection began.
  uint64_t syscalls() const { return syscalls_; }
  double digest_ms() const { return digest_ms_; }

 private:
  // One recvmsg; returns how much came, at least 1.
  Result<size_t> Receive(std::span<iovec> parts, int flags);
  Status FillBuffer();
  Result<size_t> ReceiveDirectly(std::span<const iovec> parts, size_t left, size_t bytes_behind,
                                 bool hashed);
  size_t TakeBuffered(const iovec& to);
  Status OpenPipe();
  Result<size_t> FillPipe(uint64_t bytes_max);
  void Hash(const std::byte* bytes, size_t count, Digest& digest);

  static constexpr size_t kBufferBytes = 32 << 10;
  // Hashed while it is in the cache that recv filled.
  static constexpr size_t kHashedChunkBytes = 512 << 10;

  const int socket_;
  const std::atomic<bool>& stop_;
  std::atomic<double>& last_byte_ms_;
  std::unique_ptr<std::byte[]> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  std::vector<iovec> window_;  // of one call
  // ReadToFile's: empty between calls.
  Descriptor pipe_read_end_;
  Descriptor pipe_write_end_;
  uint64_t syscalls_ = 0;
  double digest_ms_ = 0;
};

}  // namespace holdfast
