// Sleeps until one of several futexes is no longer what it was (Linux 5.16,
// futex_waitv): the logs of all disks, and commands.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "base/result.h"

namespace holdfast {

class LogWaiter {
 public:
  void Clear() { waits_.clear(); }
  void Add(const std::atomic<uint32_t>& word, uint32_t expected) {
    futex_waitv wait{};
    wait.val = expected;
    wait.uaddr = reinterpret_cast<uint64_t>(&word);
    wait.flags = FUTEX_32;  // not private: the rings' are in shared memory
    waits_.push_back(wait);
  }

  // Returns when one was woken or is not as expected. May return early.
  Status Wait() {
    const long woken = ::syscall(SYS_futex_waitv, waits_.data(), waits_.size(), 0, nullptr, 0);
    if (woken >= 0 || errno == EAGAIN || errno == EINTR) return {};
    return Error::FromErrno("futex_waitv", "waiting for the disks' logs",
                            errno == ENOSYS ? ErrorCode::kUnsupported : ErrorCode::kSyscall);
  }

 private:
  std::vector<futex_waitv> waits_;
};

}  // namespace holdfast
