// One sendfile per extent. Its calls cannot say "more": the writer corks the
// socket, so that scattered pages still fill their segments.

#include <sys/sendfile.h>

#include "send/page_sender.h"

namespace holdfast {
namespace {

class SendfileSender final : public PageSender {
 public:
  Status Send(const PageSource& source, std::span<const Extent> extents,
              StreamSocket& socket) override {
    bool moved = false;
    for (const Extent& extent : extents) HF_TRY(SendOne(source, extent, socket, moved));
    return {};
  }

  SenderCounters counters() const override { return counters_; }

 private:
  Status SendOne(const PageSource& source, const Extent& extent, StreamSocket& socket,
                 bool& moved) {
    auto offset = static_cast<off_t>(source.file_offset + extent.offset);
    uint64_t left = extent.bytes;
    while (left > 0) {
      HF_TRY(socket.CheckCancelled());
      const ssize_t sent = ::sendfile(socket.fd(), source.fd, &offset, left);
      if (sent > 0) {
        socket.CountSyscall();
        moved = true;
        left -= static_cast<uint64_t>(sent);
        counters_.reference_bytes += static_cast<uint64_t>(sent);
        continue;
      }
      if (sent == 0) {
        return Error{ErrorCode::kSyscall, 0, "sendfile", "page source is shorter than its runs"};
      }
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {
        HF_TRY(socket.WaitWritable());
        continue;
      }
      if (errno == EINVAL && !moved) {
        return Error::FromErrno("sendfile", "page source", ErrorCode::kUnsupported);
      }
      return socket.LostBy("sendfile");
    }
    return {};
  }

  SenderCounters counters_;
};

}  // namespace

std::unique_ptr<PageSender> MakeSendfileSender() { return std::make_unique<SendfileSender>(); }

}  // namespace holdfast
