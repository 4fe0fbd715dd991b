#include "receive/standby_stream.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace holdfast {
namespace {

// The standby may be about to listen: it was told to just now.
constexpr int kListenWaitMsMax = 1'000;
constexpr int kListenRetryMs = 2;
// A standby that reads nothing for so long has died or hangs.
constexpr int kStandbySilenceMsMax = 5'000;

}  // namespace

bool StandbyStream::Same(const Prefix& a, const Prefix& b) {
  if (a == b) return true;
  return a != nullptr && b != nullptr && a->size() == b->size() &&
         (a->empty() || std::memcmp(a->data(), b->data(), a->size()) == 0);
}

Error StandbyStream::Failed(const char* syscall) const {
  return Error::FromErrno(syscall, "device state to " + path_, ErrorCode::kStateLoad);
}

Error StandbyStream::Cancelled() const {
  return Error::Of(ErrorCode::kCancelled, "device state to " + path_ + ": given up");
}

Status StandbyStream::Connect() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path_.empty() || path_.size() >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return Failed("connect");
  }
  std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
  const double deadline_ms = MonotonicMs() + kListenWaitMsMax;
  for (;;) {
    if (cancel_.cancelled()) return Cancelled();
    Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.valid()) return Failed("socket");
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      socket_ = std::move(socket);
      return {};
    }
    const bool not_yet =
        errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN || errno == EINTR;
    if (!not_yet || MonotonicMs() >= deadline_ms) return Failed("connect");
    pollfd cancelled{cancel_.fd(), POLLIN, 0};
    ::poll(&cancelled, 1, kListenRetryMs);
  }
}

Status StandbyStream::WriteAll(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (cancel_.cancelled()) return Cancelled();
    const ssize_t sent =
        ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return Failed("send");
    pollfd either[2] = {{socket_.get(), POLLOUT, 0}, {cancel_.fd(), POLLIN, 0}};
    const int ready = ::poll(either, 2, kStandbySilenceMsMax);
    if (ready < 0 && errno != EINTR) return Failed("poll");
    if (ready == 0) {
      errno = ETIMEDOUT;
      return Failed("send");
    }
  }
  return {};
}

Status StandbyStream::Begin(const Prefix& prefix) {
  HF_ASSERT(prefix != nullptr);
  const std::lock_guard turn(turn_);
  if (stage_ != Stage::kNothing) {
    return Error::Of(ErrorCode::kStateLoad, "prefix to " + path_ + ": this standby was given one before");
  }
  HF_TRY(Connect());
  stage_ = Stage::kBroken;
  const Status written = WriteAll(*prefix);
  if (!written.ok()) {
    socket_.Close();
    return written;
  }
  written_ = prefix;
  stage_ = Stage::kPrefix;
  return {};
}

Result<uint64_t> StandbyStream::Finish(const Prefix& prefix, std::span<const std::byte> state) {
  const std::lock_guard turn(turn_);
  const Stage before = stage_;
  if (before == Stage::kBroken || before == Stage::kEnded) {
    const char* why = before == Stage::kBroken ? ": only a part of the prefix came there"
                                               : ": this standby was given one before";
    return Error::Of(ErrorCode::kStateLoad, "device state to " + path_ + why);
  }
  if (before == Stage::kPrefix && !Same(written_, prefix)) {
    return Error::Of(ErrorCode::kStateLoad,
                     "device state to " + path_ + ": this standby has the prefix of another checkpoint");
  }
  std::span<const std::byte> first;
  if (before == Stage::kNothing) {
    HF_TRY(Connect());
    if (prefix != nullptr) first = *prefix;
  }
  stage_ = Stage::kEnded;
  Status written = WriteAll(first);
  if (written.ok()) written = WriteAll(state);
  socket_.Close();
  if (!written.ok()) return written.error();
  return first.size() + state.size();
}

}  // namespace holdfast
