#include "send/stream_socket.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/errqueue.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "wire/text.h"

namespace holdfast {
namespace {

void SetOption(int fd, int level, int name, int value) {
  // Best effort: tests run over Unix sockets, which have no TCP options.
  ::setsockopt(fd, level, name, &value, sizeof value);
}

// After a poll that was woken by an error with no notification behind it.
constexpr int kHangUpPauseMs = 1;

Error Cancelled() { return Error::Of(ErrorCode::kCancelled, "bulk connection: cancelled"); }

Error Silent(int timeout_ms) {
  return Error{ErrorCode::kPeerLost, ETIMEDOUT, "poll",
               Text("bulk connection: peer silent for %d ms", timeout_ms)};
}

// Waits for `events` on fd or for the signal; returns what is ready, 0 if the time is up.
Result<short> PollWithCancel(int fd, short events, double timeout_ms, const CancelSignal& cancel) {
  const double deadline = MonotonicMs() + timeout_ms;
  for (;;) {
    pollfd fds[2] = {{fd, events, 0}, {cancel.fd(), POLLIN, 0}};
    const double left = std::max(0.0, deadline - MonotonicMs());
    const int ready = ::poll(fds, 2, static_cast<int>(std::ceil(left)));
    if (cancel.cancelled()) return Cancelled();
    if (ready < 0 && errno != EINTR) {
      return Error::FromErrno("poll", "bulk connection: waiting for the peer");
    }
    if (ready > 0 && fds[0].revents != 0) return fds[0].revents;
    if (ready == 0 && MonotonicMs() >= deadline) return short{0};
  }
}

Result<Descriptor> DialOne(const addrinfo& address, double deadline, const std::string& where,
                           const CancelSignal& cancel) {
  Descriptor socket(
      ::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP));
  if (!socket.valid()) {
    return Error::FromErrno("socket", "bulk connection to " + where, ErrorCode::kConnect);
  }
  if (::connect(socket.get(), address.ai_addr, address.ai_addrlen) == 0) return socket;
  if (errno != EINPROGRESS) {
    return Error::FromErrno("connect", "bulk connection to " + where, ErrorCode::kConnect);
  }
  auto ready = PollWithCancel(socket.get(), POLLOUT, deadline - MonotonicMs(), cancel);
  if (!ready.ok()) return ready.error();
  if (ready.value() == 0) {
    return Error{ErrorCode::kConnect, ETIMEDOUT, "connect",
                 "bulk connection to " + where + ": no answer in time"};
  }
  int failure = 0;
  socklen_t length = sizeof failure;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &failure, &length);
  if (failure != 0) {
    return Error{ErrorCode::kConnect, failure, "connect", "bulk connection to " + where};
  }
  return socket;
}

}  // namespace

std::span<iovec> WithoutFirst(std::span<iovec> parts, uint64_t bytes) {
  while (!parts.empty() && bytes >= parts[0].iov_len) {
    bytes -= parts[0].iov_len;
    parts = parts.subspan(1);
  }
  if (bytes > 0) {
    HF_ASSERT(!parts.empty());
    parts[0].iov_base = static_cast<std::byte*>(parts[0].iov_base) + bytes;
    parts[0].iov_len -= bytes;
  }
  return parts;
}

StreamSocket::StreamSocket(Descriptor socket, const CancelSignal& cancel)
    : socket_(std::move(socket)), cancel_(cancel) {
  const int flags = ::fcntl(fd(), F_GETFL);
  ::fcntl(fd(), F_SETFL, flags | O_NONBLOCK);
  SetOption(fd(), IPPROTO_TCP, TCP_NODELAY, 1);
  // The kernel's own bound on unacknowledged bytes, also while nobody polls.
  SetOption(fd(), IPPROTO_TCP, TCP_USER_TIMEOUT, kPeerSilenceMsMax);
}

void StreamSocket::AbortOnClose() {
  const linger abort{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd(), SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
}

Result<Descriptor> StreamSocket::Dial(const std::string& host, uint16_t port, int timeout_ms,
                                      const CancelSignal& cancel) {
  const double deadline = MonotonicMs() + timeout_ms;
  const std::string where = host + " port " + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failure =
      ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (failure != 0) {
    return Error::Of(ErrorCode::kConnect,
                     "bulk connection to " + where + ": " + ::gai_strerror(failure));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  Error last = Error::Of(ErrorCode::kConnect, "bulk connection to " + where + ": no address");
  for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
    auto socket = DialOne(*at, deadline, where, cancel);
    if (socket.ok()) return socket;
    last = socket.error();
    if (last.code == ErrorCode::kCancelled || MonotonicMs() >= deadline) break;
  }
  return last;
}

Result<short> StreamSocket::Wait(short events, int timeout_ms) {
  const double deadline = MonotonicMs() + timeout_ms;
  for (;;) {
    auto ready = PollWithCancel(fd(), events, std::max(0.0, deadline - MonotonicMs()), cancel_);
    if (!ready.ok()) return ready;
    if (ready.value() == 0) return Silent(timeout_ms);
    if (IsReady(ready.value(), events)) return ready;
  }
}

// False if poll was woken by notifications alone: they are in the ledger now, so
// that it can wait again.
bool StreamSocket::IsReady(short answered, short events) {
  const bool notified = (answered & POLLERR) != 0 && ReapCompletions();
  return !notified || (answered & (events | POLLHUP)) != 0;
}

Result<size_t> StreamSocket::AwaitFirst(std::span<StreamSocket* const> sockets, int timeout_ms) {
  const double deadline = MonotonicMs() + timeout_ms;
  std::vector<pollfd> fds;
  for (const StreamSocket* socket : sockets) fds.push_back({socket->fd(), POLLIN, 0});
  const CancelSignal& cancel = sockets[0]->cancel_;
  fds.push_back({cancel.fd(), POLLIN, 0});
  for (;;) {
    const double left = std::max(0.0, deadline - MonotonicMs());
    const int ready = ::poll(fds.data(), fds.size(), static_cast<int>(std::ceil(left)));
    if (cancel.cancelled()) return Cancelled();
    if (ready < 0 && errno != EINTR) {
      return Error::FromErrno("poll", "bulk connection: waiting for the peer");
    }
    for (size_t i = 0; ready > 0 && i < sockets.size(); i++) {
      if (fds[i].revents != 0 && sockets[i]->IsReady(fds[i].revents, POLLIN)) return i;
    }
    if (MonotonicMs() >= deadline) return Silent(timeout_ms);
  }
}

Status StreamSocket::WaitWritable() {
  auto ready = Wait(two_way_ ? POLLOUT : POLLOUT | POLLIN, kPeerSilenceMsMax);
  if (!ready.ok()) return ready.error();
  // Nothing is due from the peer while we send: this is its ERROR, or its end.
  if (!two_way_ && (ready.value() & POLLIN) != 0) {
    return Error::Of(ErrorCode::kPeerLost, "bulk connection: peer ended it while being sent to");
  }
  return {};
}

Status StreamSocket::CheckCancelled() const {
  if (cancel_.cancelled()) return Cancelled();
  return {};
}

Status StreamSocket::EnableZeroCopy() {
  const int on = 1;
  if (::setsockopt(fd(), SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) != 0) {
    return Error::FromErrno("setsockopt", "SO_ZEROCOPY", ErrorCode::kUnsupported);
  }
  return {};
}

bool StreamSocket::ReapCompletions() {
  bool reaped = false;
  for (;;) {
    alignas(cmsghdr) char control[128];
    msghdr message{};
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(fd(), &message, MSG_ERRQUEUE | MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return reaped;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      const bool is_error = (part->cmsg_level == SOL_IP && part->cmsg_type == IP_RECVERR) ||
                            (part->cmsg_level == SOL_IPV6 && part->cmsg_type == IPV6_RECVERR);
      if (!is_error) continue;
      sock_extended_err error;
      std::memcpy(&error, CMSG_DATA(part), sizeof error);
      if (error.ee_origin != SO_EE_ORIGIN_ZEROCOPY || error.ee_errno != 0) continue;
      // A range that is not in flight is the kernel's mistake; its calls stay lent.
      reaped |= completions_.Completed(error.ee_info, error.ee_data,
                                       (error.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0);
    }
  }
}

Status StreamSocket::AwaitErrorQueue(int timeout_ms) {
  // POLLERR needs no asking for.
  auto ready = PollWithCancel(fd(), 0, timeout_ms, cancel_);
  if (!ready.ok()) return ready.error();
  if (ready.value() == 0 || ReapCompletions()) return {};
  // A connection that has ended, with notifications still on their way: poll
  // would answer at once again and again.
  auto paused = PollWithCancel(-1, 0, kHangUpPauseMs, cancel_);
  if (!paused.ok()) return paused.error();
  return {};
}

Status StreamSocket::AwaitReadable(int other_fd, int timeout_ms) {
  auto ready = PollWithCancel(other_fd, POLLIN, timeout_ms, cancel_);
  if (!ready.ok()) return ready.error();
  return {};
}

Error StreamSocket::LostBy(const char* syscall) const {
  switch (errno) {
    case EPIPE:
    case ECONNRESET:
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
      return Error::FromErrno(syscall, "bulk connection: peer lost", ErrorCode::kPeerLost);
    default: return Error::FromErrno(syscall, "bulk connection: moving bytes");
  }
}

Status StreamSocket::SendAll(std::span<iovec> parts, bool more) {
  const int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  while (!parts.empty()) {
    if (cancel_.cancelled()) return Cancelled();
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = std::min<size_t>(parts.size(), IOV_MAX);
    const bool last = message.msg_iovlen == parts.size();
    const ssize_t sent =
        ::sendmsg(fd(), &message, more || !last ? flags | MSG_MORE : flags);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return LostBy("sendmsg");
      HF_TRY(WaitWritable());
      continue;
    }
    syscalls_++;
    parts = WithoutFirst(parts, static_cast<uint64_t>(sent));
  }
  return {};
}

Status StreamSocket::ReceiveAll(std::span<std::byte> to, int timeout_ms) {
  while (!to.empty()) {
    const ssize_t received = ::recv(fd(), to.data(), to.size(), MSG_DONTWAIT);
    if (received == 0) {
      return Error::Of(ErrorCode::kPeerLost, "bulk connection: peer closed it");
    }
    if (received < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return LostBy("recv");
      auto ready = Wait(POLLIN, timeout_ms);
      if (!ready.ok()) return ready.error();
      continue;
    }
    to = to.subspan(static_cast<size_t>(received));
  }
  return {};
}

void StreamSocket::SetCork(bool corked) {
  SetOption(fd(), IPPROTO_TCP, TCP_CORK, corked ? 1 : 0);
}

void StreamSocket::LimitUnsent(uint64_t bytes) {
  SetOption(fd(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, static_cast<int>(std::min<uint64_t>(bytes, INT_MAX)));
}

}  // namespace holdfast
