#include "send/splice_pipe.h"

#include <fcntl.h>
#include <unistd.h>

namespace holdfast {
namespace {

// 256 slots of a page each; what /proc/sys/fs/pipe-max-size allows everyone.
constexpr int kPipeBytes = 1 << 20;

}  // namespace

Status SplicePipe::Open() {
  if (is_open()) return {};
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
    return Error::FromErrno("pipe2", "splice sender");
  }
  read_end_ = Descriptor(ends[0]);
  write_end_ = Descriptor(ends[1]);
  // Refused to users beyond their pipe quota: the smaller pipe works too.
  ::fcntl(write_end_.get(), F_SETPIPE_SZ, kPipeBytes);
  const int bytes = ::fcntl(write_end_.get(), F_GETPIPE_SZ);
  if (bytes <= 0) {
    const Error error = Error::FromErrno("fcntl", "splice sender: pipe size");
    Close();
    return error;
  }
  slots_ = static_cast<uint64_t>(bytes) / kSlotBytes;
  return {};
}

void SplicePipe::Close() {
  read_end_.Close();
  write_end_.Close();
}

Status SplicePipe::Drain(uint64_t in_pipe, StreamSocket& socket) {
  while (in_pipe > 0) {
    HF_TRY(socket.CheckCancelled());
    const ssize_t sent = ::splice(read_end_.get(), nullptr, socket.fd(), nullptr, in_pipe,
                                  SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE);
    if (sent > 0) {
      socket.CountSyscall();
      in_pipe -= static_cast<uint64_t>(sent);
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) return socket.LostBy("splice");
    HF_TRY(socket.WaitWritable());
  }
  return {};
}

}  // namespace holdfast
