#include "output/peer_socket.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/descriptor.h"
#include "base/kernel_abi.h"
#include "base/unix_socket.h"

namespace holdfast {
namespace {

// A QEMU that was handed its VM by another one has bound its socket by this
// name, and was then given the other's (lib/handoff/command-line.ts).
constexpr const char* kRenamedEnding = ".new";

// The peer's end of our connection: accepted at `path`, and made with us.
bool IsOurPeer(int fd, const std::string& path) {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return false;
  if (address.sun_family != AF_UNIX) return false;
  const std::string bound(address.sun_path, ::strnlen(address.sun_path, sizeof address.sun_path));
  if (bound != path && bound != path + kRenamedEnding) return false;
  int listens = 0;
  length = sizeof listens;
  if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 || listens != 0) {
    return false;
  }
  const auto peer = PeerPid(fd);
  return peer.ok() && peer.value() == ::getpid();
}

struct CloseDir {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

}  // namespace

Status FitPeerSocket(int socket_fd, const std::string& path, int bytes) {
  const auto pid = PeerPid(socket_fd);
  if (!pid.ok()) return pid.error();
  const Descriptor process(abi::PidfdOpen(pid.value()));
  if (!process.valid()) return Error::FromErrno("pidfd_open", "QEMU's process");
  const std::string name = "/proc/" + std::to_string(pid.value()) + "/fd";
  const std::unique_ptr<DIR, CloseDir> directory(::opendir(name.c_str()));
  if (directory == nullptr) return Error::FromErrno("opendir", name);
  while (const dirent* entry = ::readdir(directory.get())) {
    if (entry->d_name[0] == '.') continue;
    char target[16] = {};
    const ssize_t length =
        ::readlinkat(::dirfd(directory.get()), entry->d_name, target, sizeof target - 1);
    if (length <= 0 || std::strncmp(target, "socket:", 7) != 0) continue;
    const Descriptor fetched(abi::PidfdGetfd(process.get(), std::atoi(entry->d_name)));
    if (!fetched.valid()) {
      if (errno == EBADF) continue;  // closed since it was listed
      return Error::FromErrno("pidfd_getfd", "QEMU's socket");
    }
    if (!IsOurPeer(fetched.get(), path)) continue;
    // The flags belong to the open socket, not to the descriptor: QEMU's has them, too.
    const int flags = ::fcntl(fetched.get(), F_GETFL);
    if (flags < 0 || ::fcntl(fetched.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
      return Error::FromErrno("fcntl", "O_NONBLOCK");
    }
    if (::setsockopt(fetched.get(), SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) != 0) {
      return Error::FromErrno("setsockopt", "SO_SNDBUFFORCE");
    }
    return {};
  }
  return Error::Of(ErrorCode::kUnsupported, "the other end of " + path + " was not found in QEMU");
}

}  // namespace holdfast
