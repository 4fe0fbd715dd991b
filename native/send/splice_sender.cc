// file → pipe → socket: many scattered extents gather in the pipe and leave in
// one call.

#include <fcntl.h>

#include <algorithm>

#include "send/page_sender.h"
#include "send/splice_pipe.h"

namespace holdfast {
namespace {

class SpliceSender final : public PageSender {
 public:
  Status Send(const PageSource& source, std::span<const Extent> extents,
              StreamSocket& socket) override {
    Status sent = SendAll(source, extents, socket);
    if (!sent.ok()) pipe_.Close();
    return sent;
  }

  SenderCounters counters() const override { return counters_; }

 private:
  struct Cursor {
    std::span<const Extent> extents;
    uint64_t done;  // bytes of extents[0] that are in the pipe or beyond
  };

  Status SendAll(const PageSource& source, std::span<const Extent> extents,
                 StreamSocket& socket) {
    HF_TRY(pipe_.Open());
    Cursor cursor{extents, 0};
    bool moved = false;
    while (!cursor.extents.empty()) {
      auto filled = Fill(source, cursor, socket);
      if (!filled.ok()) {
        Error error = filled.error();
        if (error.sys_errno == EINVAL && !moved) error.code = ErrorCode::kUnsupported;
        return error;
      }
      HF_TRY(pipe_.Drain(filled.value(), socket));
      counters_.reference_bytes += filled.value();
      moved = true;
    }
    return {};
  }

  // Fills the empty pipe from the extents; returns the bytes that are in it.
  Result<uint64_t> Fill(const PageSource& source, Cursor& cursor, StreamSocket& socket) {
    uint64_t in_pipe = 0;
    uint64_t slots = pipe_.slots();
    while (!cursor.extents.empty() && slots > 0) {
      const Extent& extent = cursor.extents[0];
      const uint64_t want =
          std::min(extent.bytes - cursor.done, slots * SplicePipe::kSlotBytes);
      auto offset = static_cast<off_t>(source.file_offset + extent.offset + cursor.done);
      const ssize_t got = ::splice(source.fd, &offset, pipe_.write_end(), nullptr, want,
                                   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (got < 0) {
        if (errno == EINTR) continue;
        if (errno == EAGAIN && in_pipe > 0) break;  // slots are the kernel's to count
        return Error::FromErrno("splice", "page source to pipe");
      }
      if (got == 0) {
        return Error{ErrorCode::kSyscall, 0, "splice", "page source is shorter than its runs"};
      }
      socket.CountSyscall();
      const auto bytes = static_cast<uint64_t>(got);
      in_pipe += bytes;
      slots -= std::min(slots, (bytes + SplicePipe::kSlotBytes - 1) / SplicePipe::kSlotBytes);
      cursor.done += bytes;
      if (cursor.done == extent.bytes) cursor = {cursor.extents.subspan(1), 0};
    }
    return in_pipe;
  }

  SplicePipe pipe_;
  SenderCounters counters_;
};

}  // namespace

std::unique_ptr<PageSender> MakeSpliceSender() { return std::make_unique<SpliceSender>(); }

}  // namespace holdfast
