// A Unix socket with QEMU's framing: the ring's bytes leave as they lie, many
// frames a call.

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "base/unix_socket.h"
#include "output/target.h"

namespace holdfast {
namespace {

class StreamTarget : public Target {
 public:
  explicit StreamTarget(std::string path) : path_(std::move(path)) {}

  Status Open() override {
    auto socket = ConnectUnixNow(path_);
    if (!socket.ok()) return socket.error();
    descriptor_ = std::move(socket).value();
    return {};
  }

  bool MayAppear(const Error& error) const override {
    return error.sys_errno == ENOENT || error.sys_errno == ECONNREFUSED ||
           error.sys_errno == EAGAIN;
  }

  SendOutcome Send(FrameRing& ring, const FrameMark& end) override {
    SendOutcome outcome;
    RingParts parts =
        ring.Upto(std::min(end.position, ring.head().position + kSendBytesPerTurn));
    if (parts.bytes == 0) return outcome;
    msghdr message{};
    message.msg_iov = parts.parts.data();
    message.msg_iovlen = static_cast<size_t>(parts.count);
    const ssize_t sent = ::sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      outcome.blocked = errno == EAGAIN;
      if (!outcome.blocked) outcome.lost_errno = errno;
      return outcome;
    }
    outcome.frames = ring.Consume(static_cast<uint64_t>(sent));
    // A length that left with an earlier call is taken off here: right in the sum, modulo 2^64.
    outcome.bytes = static_cast<uint64_t>(sent) - kPacketLengthBytes * outcome.frames;
    outcome.blocked = static_cast<uint64_t>(sent) < parts.bytes;
    return outcome;
  }

  ReceiveOutcome Receive(FrameRing& ring) override {
    while (ring.room() > 0) {
      RingParts room = ring.Room(ring.room());
      const ssize_t bytes = ::readv(fd(), room.parts.data(), room.count);
      if (bytes > 0) {
        if (!ring.Append(static_cast<uint64_t>(bytes))) return {EPROTO};
        continue;
      }
      if (bytes == 0) return {EPIPE};
      if (errno != EAGAIN) return {errno};
      break;
    }
    return {};
  }

 private:
  const std::string path_;
};

}  // namespace

std::unique_ptr<Target> MakeStreamTarget(std::string path) {
  return std::make_unique<StreamTarget>(std::move(path));
}

}  // namespace holdfast
