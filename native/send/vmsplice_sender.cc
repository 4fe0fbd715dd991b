// mapping → pipe → socket: one vmsplice lends the pipe up to 256 pages, however
// scattered, and one splice passes them on. Never with SPLICE_F_GIFT: the pages
// stay ours, to be written again once the epoch is acknowledged.

#include <fcntl.h>
#include <limits.h>

#include <algorithm>
#include <vector>

#include "send/page_sender.h"
#include "send/splice_pipe.h"

namespace holdfast {
namespace {

class VmspliceSender final : public PageSender {
 public:
  Status Send(const PageSource& source, std::span<const Extent> extents,
              StreamSocket& socket) override {
    Status sent = SendAll(source, extents, socket);
    if (!sent.ok()) pipe_.Close();
    return sent;
  }

  SenderCounters counters() const override { return counters_; }

 private:
  Status SendAll(const PageSource& source, std::span<const Extent> extents,
                 StreamSocket& socket) {
    HF_TRY(pipe_.Open());
    parts_.clear();
    for (const Extent& extent : extents) {
      parts_.push_back({const_cast<std::byte*>(source.base + extent.offset), extent.bytes});
    }
    bool moved = false;
    for (std::span<iovec> rest = parts_; !rest.empty();) {
      // More parts than slots would only be looked at to be left behind.
      const size_t count = std::min<uint64_t>({rest.size(), pipe_.slots(), IOV_MAX});
      const ssize_t lent = ::vmsplice(pipe_.write_end(), rest.data(), count, SPLICE_F_NONBLOCK);
      if (lent < 0) {
        if (errno == EINTR) continue;
        const bool refused = errno == EFAULT && !moved;  // memory without pages to lend
        return Error::FromErrno("vmsplice", "pages to pipe",
                                refused ? ErrorCode::kUnsupported : ErrorCode::kSyscall);
      }
      socket.CountSyscall();
      const auto bytes = static_cast<uint64_t>(lent);
      HF_TRY(pipe_.Drain(bytes, socket));
      counters_.reference_bytes += bytes;
      moved = true;
      rest = WithoutFirst(rest, bytes);
    }
    return {};
  }

  SplicePipe pipe_;
  std::vector<iovec> parts_;  // kept: its size is that of the largest batch
  SenderCounters counters_;
};

}  // namespace

std::unique_ptr<PageSender> MakeVmspliceSender() { return std::make_unique<VmspliceSender>(); }

}  // namespace holdfast
