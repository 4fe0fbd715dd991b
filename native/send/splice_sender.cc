// file → pipe → socket: many scattered extents gather in the pipe and leave in
// one call, SPLICE_F_MORE keeping segments full.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "send/page_sender.h"

namespace holdfast {
namespace {

// 256 slots of a page each; what /proc/sys/fs/pipe-max-size allows everyone.
constexpr int kPipeBytes = 1 << 20;
constexpr uint64_t kSlotBytes = 4096;

class SpliceSender final : public PageSender {
 public:
  Status Send(const PageSource& source, std::span<const Extent> extents,
              StreamSocket& socket) override {
    if (!read_end_.valid()) HF_TRY(OpenPipe());
    Cursor cursor{extents, 0};
    bool moved = false;
    while (!cursor.extents.empty()) {
      auto filled = Fill(source, cursor);
      if (!filled.ok()) {
        const bool refused = filled.error().sys_errno == EINVAL && !moved;
        if (!refused) return filled.error();
        Error error = filled.error();
        error.code = ErrorCode::kUnsupported;
        return error;
      }
      HF_TRY(Drain(filled.value(), socket));
      moved = true;
    }
    return {};
  }

 private:
  struct Cursor {
    std::span<const Extent> extents;
    uint64_t done;  // bytes of extents[0] that are in the pipe or beyond
  };

  Status OpenPipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
      return Error::FromErrno("pipe2", "splice sender");
    }
    read_end_ = Descriptor(ends[0]);
    write_end_ = Descriptor(ends[1]);
    // Refused to users beyond their pipe quota: the smaller pipe works too.
    ::fcntl(write_end_.get(), F_SETPIPE_SZ, kPipeBytes);
    const int bytes = ::fcntl(write_end_.get(), F_GETPIPE_SZ);
    if (bytes <= 0) return Error::FromErrno("fcntl", "splice sender: pipe size");
    slots_ = static_cast<uint64_t>(bytes) / kSlotBytes;
    return {};
  }

  // Fills the empty pipe from the extents; returns the bytes that are in it.
  Result<uint64_t> Fill(const PageSource& source, Cursor& cursor) {
    uint64_t in_pipe = 0;
    uint64_t slots = slots_;
    while (!cursor.extents.empty() && slots > 0) {
      const Extent& extent = cursor.extents[0];
      const uint64_t want = std::min(extent.bytes - cursor.done, slots * kSlotBytes);
      auto offset = static_cast<off_t>(source.file_offset + extent.offset + cursor.done);
      const ssize_t got = ::splice(source.fd, &offset, write_end_.get(), nullptr, want,
                                   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (got < 0) {
        if (errno == EINTR) continue;
        if (errno == EAGAIN && in_pipe > 0) break;  // slots are the kernel's to count
        return Error::FromErrno("splice", "page source to pipe");
      }
      if (got == 0) {
        return Error{ErrorCode::kSyscall, 0, "splice", "page source is shorter than its runs"};
      }
      const auto bytes = static_cast<uint64_t>(got);
      in_pipe += bytes;
      slots -= std::min(slots, (bytes + kSlotBytes - 1) / kSlotBytes);
      cursor.done += bytes;
      if (cursor.done == extent.bytes) cursor = {cursor.extents.subspan(1), 0};
    }
    return in_pipe;
  }

  Status Drain(uint64_t in_pipe, StreamSocket& socket) {
    while (in_pipe > 0) {
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

  Descriptor read_end_;
  Descriptor write_end_;
  uint64_t slots_ = 0;
};

}  // namespace

std::unique_ptr<PageSender> MakeSpliceSender() { return std::make_unique<SpliceSender>(); }

}  // namespace holdfast
