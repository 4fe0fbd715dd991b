#include "base/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <cstring>

#include "base/clock.h"

namespace holdfast {
namespace {

constexpr double kSendMsMax = 1000;

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    errno = path.empty() ? ENOENT : ENAMETOOLONG;
    return Error::FromErrno("connect", "path of a Unix socket: " + path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Result<Descriptor> NewSocket() {
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return Error::FromErrno("socket", "Unix socket");
  return socket;
}

}  // namespace

Result<pid_t> PeerPid(int socket_fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return Error::FromErrno("getsockopt", "SO_PEERCRED");
  }
  if (peer.pid <= 0) {
    return Error::Of(ErrorCode::kUnsupported,
                     "the peer has no process id here: another PID namespace, or not a Unix socket");
  }
  return peer.pid;
}

Status SendWithFd(int socket_fd, std::span<const std::byte> bytes, int fd) {
  if (bytes.empty()) {
    return Error::Of(ErrorCode::kSyscall, "a descriptor needs at least one byte to travel with");
  }
  const double deadline_ms = MonotonicMs() + kSendMsMax;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  bool attached = false;
  while (!bytes.empty()) {
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!attached) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof fd);
      std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    const ssize_t sent = ::sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      attached = true;
      bytes = bytes.subspan(static_cast<size_t>(sent));
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) return Error::FromErrno("sendmsg", "sending a descriptor");
    const double left_ms = deadline_ms - MonotonicMs();
    if (left_ms <= 0) {
      errno = EAGAIN;
      return Error::FromErrno("sendmsg", "the peer does not read");
    }
    pollfd room{socket_fd, POLLOUT, 0};
    ::poll(&room, 1, static_cast<int>(left_ms) + 1);
  }
  return {};
}

Result<Descriptor> ConnectUnixNow(const std::string& path) {
  const auto address = AddressOf(path);
  if (!address.ok()) return address.error();
  auto socket = NewSocket();
  if (!socket.ok()) return socket.error();
  if (::connect(socket.value().get(), reinterpret_cast<const sockaddr*>(&address.value()),
                sizeof address.value()) != 0) {
    return Error::FromErrno("connect", "connecting to " + path);
  }
  return socket;
}

Result<Descriptor> ListenUnix(const std::string& path) {
  const auto address = AddressOf(path);
  if (!address.ok()) return address.error();
  const auto occupant = ConnectUnixNow(path);
  if (occupant.ok() || occupant.error().sys_errno == EAGAIN) {
    errno = EADDRINUSE;
    return Error::FromErrno("bind", "another process listens at " + path);
  }
  if (occupant.error().sys_errno == ECONNREFUSED) ::unlink(path.c_str());
  auto socket = NewSocket();
  if (!socket.ok()) return socket.error();
  const int fd = socket.value().get();
  ::fchmod(fd, S_IRUSR | S_IWUSR);  // before bind: the file has this mode from its first moment
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address.value()), sizeof address.value()) != 0) {
    return Error::FromErrno("bind", "listening at " + path);
  }
  if (::listen(fd, 8) != 0) return Error::FromErrno("listen", "listening at " + path);
  return socket;
}

}  // namespace holdfast
