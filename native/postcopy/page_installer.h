// Puts pages where a process waits for them, through its userfaultfd.
//
// UFFDIO_COPY, never a write to the file: it puts a page there only where there
// is none, whole and in one step, and says so if there is one. A write would
// take back what the guest has written to a page that came on demand a moment
// before: an old page, which no order of ours could exclude.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace holdfast {

class PageInstaller {
 public:
  // `event_fd` is registered over [address, address + size), missing mode.
  PageInstaller(int event_fd, uint64_t address, uint32_t page_size)
      : event_fd_(event_fd), address_(address), page_size_(page_size) {}

  // Whoever waits for one of the pages goes on, whether it was put there now or
  // before. kSyscall with ESRCH: the process has ended.
  Status Copy(uint64_t first_page, std::span<const std::byte> bytes);
  Status Zero(uint64_t first_page, uint64_t pages);

 private:
  Status ZeroByCopy(uint64_t first_page, uint64_t pages);
  Status Wake(uint64_t page);
  uint64_t AddressOf(uint64_t page) const { return address_ + page * page_size_; }

  const int event_fd_;
  const uint64_t address_;
  const uint32_t page_size_;
  bool zero_by_copy_ = false;        // hugetlbfs has no UFFDIO_ZEROPAGE
  std::vector<std::byte> zero_page_;
};

}  // namespace holdfast
