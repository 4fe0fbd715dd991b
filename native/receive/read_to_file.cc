// From the socket into a tmpfs file's page cache, through a pipe and not through
// a mapping.
//
//   socket ─ by reference ─► pipe ─ the one copy ─► page cache
//
// The first write to a page through a mapping costs a page fault, and the kernel
// clears the page although all of it is overwritten next. In a base round that
// happens with every page, and is more than half of what receiving it costs.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "receive/stream_reader.h"

namespace holdfast {
namespace {

// What /proc/sys/fs/pipe-max-size allows everyone.
constexpr int kPipeBytes = 1 << 20;

// Where the next bytes go.
struct Cursor {
  std::span<const FilePart> parts;
  uint64_t done = 0;  // of parts[0]

  uint64_t offset() const { return parts[0].offset + done; }
  uint64_t left() const { return parts[0].bytes - done; }
  void Advance(uint64_t bytes) {
    done += bytes;
    if (done == parts[0].bytes) *this = {parts.subspan(1), 0};
  }
};

uint64_t BytesOf(std::span<const FilePart> parts) {
  uint64_t bytes = 0;
  for (const FilePart& part : parts) bytes += part.bytes;
  return bytes;
}

Error WriteFailed(const char* syscall) {
  return Error::FromErrno(syscall, "writing what was received to its file");
}

Status DrainPipe(int pipe, uint64_t in_pipe, int file, Cursor& cursor, uint64_t& syscalls) {
  while (in_pipe > 0) {
    auto offset = static_cast<off_t>(cursor.offset());
    const ssize_t put = ::splice(pipe, nullptr, file, &offset, std::min(in_pipe, cursor.left()),
                                 SPLICE_F_MOVE);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return WriteFailed("splice");
    syscalls++;
    in_pipe -= static_cast<uint64_t>(put);
    cursor.Advance(static_cast<uint64_t>(put));
  }
  return {};
}

}  // namespace

Status StreamReader::OpenPipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return Error::FromErrno("pipe2", "receiving to a file");
  pipe_read_end_ = Descriptor(ends[0]);
  pipe_write_end_ = Descriptor(ends[1]);
  // Refused to users beyond their pipe quota: the smaller pipe works too.
  ::fcntl(pipe_write_end_.get(), F_SETPIPE_SZ, kPipeBytes);
  return {};
}

// The pipe is empty: only the socket can make it wait.
Result<size_t> StreamReader::FillPipe(uint64_t bytes_max) {
  for (;;) {
    if (stop_.load(std::memory_order_acquire)) {
      return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
    }
    const ssize_t got = ::splice(socket_, nullptr, pipe_write_end_.get(), nullptr,
                                 std::min<uint64_t>(bytes_max, kPipeBytes), SPLICE_F_MOVE);
    if (got > 0) {
      syscalls_++;
      last_byte_ms_.store(MonotonicMs(), std::memory_order_relaxed);
      return static_cast<size_t>(got);
    }
    if (got == 0) {
      return Error::Of(ErrorCode::kPeerLost, "bulk connection: primary closed it");
    }
    if (errno == EINTR || errno == EAGAIN) continue;
    return Error::FromErrno("splice", "bulk connection: primary lost", ErrorCode::kPeerLost);
  }
}

Status StreamReader::ReadToFile(int file, std::span<const FilePart> parts) {
  if (!pipe_read_end_.valid()) HF_TRY(OpenPipe());
  uint64_t left = BytesOf(parts);
  Cursor cursor{parts};
  while (begin_ < end_ && left > 0) {
    const ssize_t put =
        ::pwrite(file, buffer_.get() + begin_, std::min<uint64_t>(cursor.left(), end_ - begin_),
                 static_cast<off_t>(cursor.offset()));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return WriteFailed("pwrite");
    syscalls_++;
    begin_ += static_cast<size_t>(put);
    left -= static_cast<uint64_t>(put);
    cursor.Advance(static_cast<uint64_t>(put));
  }
  while (left > 0) {
    auto in_pipe = FillPipe(left);
    if (!in_pipe.ok()) return in_pipe.error();
    HF_TRY(DrainPipe(pipe_read_end_.get(), in_pipe.value(), file, cursor, syscalls_));
    left -= in_pipe.value();
  }
  return {};
}

}  // namespace holdfast
