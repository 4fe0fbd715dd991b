#include "output/control_socket.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "base/unix_socket.h"

namespace holdfast {

ControlSocket::~ControlSocket() {
  if (listener_.valid()) ::unlink(path_.c_str());
}

Status ControlSocket::Listen(Poller& poller) {
  auto listener = ListenUnix(path_);
  if (!listener.ok()) return listener.error();
  listener_ = std::move(listener).value();
  poller_ = &poller;
  unsent_.reserve(kUnsentBytesMax);
  if (!listener_watch_.Add(poller, listener_.get(), EPOLLIN)) {
    return Error::FromErrno("epoll_ctl", "control socket " + path_);
  }
  return {};
}

bool ControlSocket::Accept() {
  Descriptor next(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!next.valid()) return false;
  Drop();
  controller_ = std::move(next);
  if (!controller_watch_.Add(*poller_, controller_.get(), EPOLLIN)) controller_.Close();
  return controller_.valid();
}

void ControlSocket::Receive(const std::function<bool(const ControlMessage&)>& handle) {
  while (controller_.valid()) {
    const ssize_t bytes = ::recv(controller_.get(), received_.data() + received_bytes_,
                                 received_.size() - received_bytes_, MSG_DONTWAIT);
    if (bytes < 0 && errno == EAGAIN) return;
    if (bytes <= 0) return Drop();
    received_bytes_ += static_cast<size_t>(bytes);
    size_t taken = 0;
    for (; received_bytes_ - taken >= sizeof(ControlMessage); taken += sizeof(ControlMessage)) {
      ControlMessage message;
      std::memcpy(&message, received_.data() + taken, sizeof message);
      if (message.reserved != 0 || !handle(message)) return Drop();
    }
    received_bytes_ -= taken;
    std::memmove(received_.data(), received_.data() + taken, received_bytes_);
  }
}

void ControlSocket::Queue(std::span<const std::byte> bytes) {
  if (!controller_.valid()) return;
  if (unsent_.size() + bytes.size() > kUnsentBytesMax) return Drop();
  unsent_.insert(unsent_.end(), bytes.begin(), bytes.end());
}

void ControlSocket::Flush() {
  if (!controller_.valid() || unsent_.empty()) return;
  const ssize_t sent = ::send(controller_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && errno != EAGAIN) return Drop();
  if (sent > 0) unsent_.erase(unsent_.begin(), unsent_.begin() + sent);
  controller_watch_.Set(unsent_.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT);
}

void ControlSocket::Drop() {
  controller_watch_.Remove();
  controller_.Close();
  received_bytes_ = 0;
  unsent_.clear();
}

}  // namespace holdfast
