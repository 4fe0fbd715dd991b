// A cancellation signal that a blocked thread can poll beside its socket.
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <cstdint>

#include "base/descriptor.h"

namespace holdfast {

class CancelSignal {
 public:
  CancelSignal() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  // Sticky: once cancelled, always readable. Safe from any thread.
  void Cancel() {
    cancelled_.store(true, std::memory_order_release);
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
  }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  int fd() const { return event_.get(); }  // poll for POLLIN; never read it

 private:
  Descriptor event_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace holdfast
