#include "postcopy/page_installer.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cerrno>

namespace holdfast {
namespace {

Error NotInstalled(const char* call) {
  // A tmpfs that is full says so by ENOMEM here (mm/shmem.c, shmem_mfill_atomic_pte).
  if (errno == ENOMEM || errno == ENOSPC) {
    return Error::FromErrno(call, "guest RAM: no room for a page that has come",
                            ErrorCode::kNoSpace);
  }
  return Error::FromErrno(call, errno == ESRCH ? "the VM's QEMU has ended"
                                               : "putting a page into guest RAM");
}

}  // namespace

Status PageInstaller::Copy(uint64_t first_page, std::span<const std::byte> bytes) {
  HF_ASSERT(bytes.size() % page_size_ == 0);
  while (!bytes.empty()) {
    uffdio_copy copy{};
    copy.dst = AddressOf(first_page);
    copy.src = reinterpret_cast<uint64_t>(bytes.data());
    copy.len = bytes.size();
    size_t done = bytes.size();
    if (::ioctl(event_fd_, UFFDIO_COPY, &copy) != 0) {
      if (copy.copy > 0) {
        done = static_cast<size_t>(copy.copy);  // the next one says what is wrong
      } else if (errno == EEXIST) {
        HF_TRY(Wake(first_page));
        done = page_size_;
      } else if (errno == EAGAIN || errno == EINTR) {
        continue;  // the process is changing its mappings
      } else {
        return NotInstalled("UFFDIO_COPY");
      }
    }
    first_page += done / page_size_;
    bytes = bytes.subspan(done);
  }
  return {};
}

Status PageInstaller::Zero(uint64_t first_page, uint64_t pages) {
  if (zero_by_copy_) return ZeroByCopy(first_page, pages);
  while (pages > 0) {
    uffdio_zeropage zero{};
    zero.range = {AddressOf(first_page), pages * page_size_};
    uint64_t done = pages;
    if (::ioctl(event_fd_, UFFDIO_ZEROPAGE, &zero) != 0) {
      if (zero.zeropage > 0) {
        done = static_cast<uint64_t>(zero.zeropage) / page_size_;
      } else if (errno == EEXIST) {
        HF_TRY(Wake(first_page));
        done = 1;
      } else if (errno == EAGAIN || errno == EINTR) {
        continue;
      } else if (errno == EINVAL) {
        zero_by_copy_ = true;
        return ZeroByCopy(first_page, pages);
      } else {
        return NotInstalled("UFFDIO_ZEROPAGE");
      }
    }
    first_page += done;
    pages -= done;
  }
  return {};
}

Status PageInstaller::ZeroByCopy(uint64_t first_page, uint64_t pages) {
  zero_page_.resize(page_size_);
  for (uint64_t i = 0; i < pages; i++) HF_TRY(Copy(first_page + i, zero_page_));
  return {};
}

Status PageInstaller::Wake(uint64_t page) {
  uffdio_range range{AddressOf(page), page_size_};
  if (::ioctl(event_fd_, UFFDIO_WAKE, &range) != 0) return NotInstalled("UFFDIO_WAKE");
  return {};
}

}  // namespace holdfast
