// epoll over a few descriptors of one thread, level-triggered. A Watch is
// removed with its descriptor, and tells the kernel only of changes.
#pragma once

#include <sys/epoll.h>

#include <cerrno>
#include <cstdint>
#include <span>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

class Poller {
 public:
  Poller() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

  bool valid() const { return epoll_.valid(); }
  int fd() const { return epoll_.get(); }

  // Waits up to so long, or for ever (-1); the events that are there.
  std::span<epoll_event> Wait(std::span<epoll_event> events, int timeout_ms) {
    const int count =
        ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms);
    HF_ASSERT(count >= 0 || errno == EINTR);
    return events.first(count > 0 ? static_cast<size_t>(count) : 0);
  }

 private:
  Descriptor epoll_;
};

// What is waited for at one descriptor. Errors and hang-ups always are.
class Watch {
 public:
  // `tag`: what the events carry.
  explicit Watch(uint32_t tag) : tag_(tag) {}

  bool Add(Poller& poller, int fd, uint32_t events) {
    epoll_event event{.events = events, .data = {.u32 = tag_}};
    if (::epoll_ctl(poller.fd(), EPOLL_CTL_ADD, fd, &event) != 0) return false;
    poller_ = &poller;
    fd_ = fd;
    events_ = events;
    return true;
  }
  void Set(uint32_t events) {
    if (poller_ == nullptr || events == events_) return;
    epoll_event event{.events = events, .data = {.u32 = tag_}};
    HF_ASSERT(::epoll_ctl(poller_->fd(), EPOLL_CTL_MOD, fd_, &event) == 0);
    events_ = events;
  }
  // Before the descriptor is closed.
  void Remove() {
    if (poller_ == nullptr) return;
    ::epoll_ctl(poller_->fd(), EPOLL_CTL_DEL, fd_, nullptr);
    poller_ = nullptr;
  }

 private:
  const uint32_t tag_;
  Poller* poller_ = nullptr;
  int fd_ = -1;
  uint32_t events_ = 0;
};

}  // namespace holdfast
