// sendmsg with MSG_ZEROCOPY, notifications from the socket's error queue
// (Documentation/networking/msg_zerocopy.rst). The ledger is the socket's, as
// the ids are; so is the error queue, which every wait on the socket must empty.

#include <limits.h>
#include <sys/socket.h>

#include <algorithm>

#include "send/completion_sender.h"

namespace holdfast {
namespace {

class ZerocopySender final : public CompletionSender {
 protected:
  Status Prepare(StreamSocket& socket) override { return socket.EnableZeroCopy(); }

  int64_t Attempt(const PageSource&, std::span<iovec> parts, StreamSocket& socket) override {
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = std::min<size_t>(parts.size(), IOV_MAX);
    const ssize_t sent = ::sendmsg(socket.fd(), &message,
                                   MSG_ZEROCOPY | MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE);
    if (sent < 0) return -errno;
    socket.CountSyscall();
    socket.completions().Sent(static_cast<uint64_t>(sent));
    return sent;
  }

  bool Reap(StreamSocket& socket) override { return socket.ReapCompletions(); }

  Status AwaitNotification(StreamSocket& socket, int timeout_ms) override {
    return socket.AwaitErrorQueue(timeout_ms);
  }

  const CompletionLedger& ledger(const StreamSocket& socket) const override {
    return socket.completions();
  }
};

}  // namespace

std::unique_ptr<PageSender> MakeZerocopySender() { return std::make_unique<ZerocopySender>(); }

}  // namespace holdfast
