// Kernel ABI that Debian 12's headers (Linux 6.1) lack.
//
// Sources: Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst of
// Linux 6.7, and include/uapi/linux/{fs.h,userfaultfd.h} of the same release.
// Whether the running kernel has them is probed (guest/probe.cc), never assumed.
#pragma once

#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdint>

namespace holdfast::abi {

// ioctl on /proc/PID/pagemap: reports page ranges by category and, if asked,
// write-protects what it reports, atomically per page.
struct PageRegion {
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t categories = 0;
};
static_assert(sizeof(PageRegion) == 24);

struct PagemapScanArgument {
  uint64_t size = sizeof(PagemapScanArgument);
  uint64_t flags = 0;
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t walk_end = 0;  // out: where the walk stopped
  uint64_t regions = 0;   // address of PageRegion[regions_max]
  uint64_t regions_max = 0;
  uint64_t pages_max = 0;  // 0: no limit
  uint64_t category_inverted = 0;
  uint64_t category_mask = 0;
  uint64_t category_anyof_mask = 0;
  uint64_t return_mask = 0;
};
static_assert(sizeof(PagemapScanArgument) == 96);

inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScanArgument);

inline constexpr uint64_t kScanWriteProtectMatching = 1 << 0;  // PM_SCAN_WP_MATCHING
inline constexpr uint64_t kScanCheckWpAsync = 1 << 1;          // PM_SCAN_CHECK_WPASYNC
inline constexpr uint64_t kPageIsWpAllowed = 1 << 0;           // PAGE_IS_WPALLOWED
inline constexpr uint64_t kPageIsWritten = 1 << 1;             // PAGE_IS_WRITTEN
inline constexpr uint64_t kPageIsPresent = 1 << 3;             // PAGE_IS_PRESENT
inline constexpr uint64_t kPageIsSwapped = 1 << 4;             // PAGE_IS_SWAPPED

// userfaultfd features: WP_HUGETLBFS_SHMEM is of 5.19, WP_UNPOPULATED of 6.4,
// WP_ASYNC of 6.7.
inline constexpr uint64_t kFeatureWpHugetlbfsShmem = 1 << 12;
inline constexpr uint64_t kFeatureWpUnpopulated = 1 << 13;
inline constexpr uint64_t kFeatureWpAsync = 1 << 15;
inline constexpr uint64_t kTrackerFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                             kFeatureWpHugetlbfsShmem | kFeatureWpUnpopulated |
                                             kFeatureWpAsync;
inline constexpr uint64_t kMissingFeatures =
    UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS;  // of 4.11
static_assert(sizeof(uffdio_api) == 24 && sizeof(uffdio_register) == 32);

// cachestat(2), of 6.5: which pages of a file's range the page cache has.
struct CachestatRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};
struct Cachestat {
  uint64_t nr_cache = 0;
  uint64_t nr_dirty = 0;
  uint64_t nr_writeback = 0;
  uint64_t nr_evicted = 0;
  uint64_t nr_recently_evicted = 0;
};
static_assert(sizeof(CachestatRange) == 16 && sizeof(Cachestat) == 40);
inline constexpr long kNrCachestat = 451;  // on every architecture

// glibc 2.36 declares these without C linkage, older ones not at all.
inline int PidfdOpen(pid_t pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }
inline int PidfdGetfd(int pidfd, int remote_fd) {
  return static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0));
}

}  // namespace holdfast::abi
