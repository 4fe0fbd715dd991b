// Hands the device state to the standby QEMU, which listens on a Unix socket
// (migrate-incoming unix:PATH) and loads what it reads until the stream ends.

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include <cinttypes>
#include <cstring>

#include "base/clock.h"
#include "receive/session.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// The standby may be about to listen: it was told to just now.
constexpr int kListenWaitMsMax = 1'000;
constexpr long kListenRetryNs = 2'000'000;
// A standby that reads nothing for so long has died or hangs.
constexpr int kStandbySilenceMsMax = 5'000;

Error StateError(const char* syscall, const std::string& path) {
  return Error::FromErrno(syscall, "device state to " + path, ErrorCode::kStateLoad);
}

Result<Descriptor> ConnectUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return StateError("connect", path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const double deadline = MonotonicMs() + kListenWaitMsMax;
  for (;;) {
    Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket.valid()) return StateError("socket", path);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return socket;
    }
    const bool not_yet = errno == ENOENT || errno == ECONNREFUSED || errno == EINTR;
    if (!not_yet || MonotonicMs() >= deadline) return StateError("connect", path);
    const timespec pause{0, kListenRetryNs};
    ::nanosleep(&pause, nullptr);
  }
}

Status WriteAll(int fd, const std::string& path, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent =
        ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return StateError("send", path);
    pollfd writable{fd, POLLOUT, 0};
    const int ready = ::poll(&writable, 1, kStandbySilenceMsMax);
    if (ready < 0 && errno != EINTR) return StateError("poll", path);
    if (ready == 0) {
      errno = ETIMEDOUT;
      return StateError("send", path);
    }
  }
  return {};
}

}  // namespace

Result<uint64_t> WriteToStandby(const std::string& socket_path,
                                std::span<const std::span<const std::byte>> parts) {
  auto socket = ConnectUnix(socket_path);
  if (!socket.ok()) return socket.error();
  uint64_t bytes = 0;
  for (const auto& part : parts) {
    HF_TRY(WriteAll(socket.value().get(), socket_path, part));
    bytes += part.size();
  }
  return bytes;
}

}  // namespace holdfast
