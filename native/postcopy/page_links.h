// Where the receiver leaves the connections of the page stream, and the link
// origin takes them up: the newest counts, for it is that of a source which has
// given the others up. One may be there before anybody looks for it.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <utility>

#include "base/descriptor.h"

namespace holdfast {

class PageLinks {
 public:
  PageLinks() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  struct Link {
    Descriptor socket;  // not valid: none
    uint32_t page_size = 0;  // of the numbers that go over it
  };

  // A connection that has been greeted back.
  void Offer(Link link) {
    {
      const std::lock_guard lock(mutex_);
      offered_ = std::move(link);
    }
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
  }

  // None has come since: see Link.
  Link Take() {
    uint64_t count;
    [[maybe_unused]] const ssize_t got = ::read(event_.get(), &count, sizeof count);
    const std::lock_guard lock(mutex_);
    return std::exchange(offered_, {});
  }

  // Readable when one has come.
  int fd() const { return event_.get(); }

 private:
  const Descriptor event_;
  std::mutex mutex_;
  Link offered_;
};

}  // namespace holdfast
