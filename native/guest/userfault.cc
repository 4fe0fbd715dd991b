#include "guest/userfault.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/kernel_abi.h"
#include "guest/inject.h"

namespace holdfast {
namespace {

// From the end of QEMU's address space to its own: gigabytes have to be freed.
constexpr int kEndingMsMax = 2'000;

std::string FdPath(pid_t pid, int fd) {
  return "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
}

bool IsUserfault(pid_t pid, int fd) {
  char target[64] = {};
  const ssize_t length = ::readlink(FdPath(pid, fd).c_str(), target, sizeof target - 1);
  return length > 0 && std::string_view(target) == "anon_inode:[userfaultfd]";
}

std::vector<int> UserfaultsOf(pid_t pid) {
  std::vector<int> found;
  DIR* directory = ::opendir(("/proc/" + std::to_string(pid) + "/fd").c_str());
  if (directory == nullptr) return found;
  while (const dirent* entry = ::readdir(directory)) {
    if (entry->d_name[0] == '.') continue;
    const int fd = std::atoi(entry->d_name);
    if (IsUserfault(pid, fd)) found.push_back(fd);
  }
  ::closedir(directory);
  return found;
}

// What it was enabled with, as the kernel tells; 0: not enabled yet.
std::optional<uint64_t> FeaturesOf(pid_t pid, int fd) {
  std::ifstream info("/proc/" + std::to_string(pid) + "/fdinfo/" + std::to_string(fd));
  for (std::string line; std::getline(info, line);) {
    unsigned long long api = 0;
    unsigned long long features = 0;
    if (std::sscanf(line.c_str(), "API: %llx:%llx", &api, &features) == 2) return features;
  }
  return std::nullopt;
}

// Two descriptors, one open file? Unknown (no CONFIG_KCMP) counts as yes.
bool SameFile(int own_fd, pid_t pid, int remote_fd) {
  return ::syscall(SYS_kcmp, ::getpid(), pid, KCMP_FILE, own_fd, remote_fd) <= 0;
}

// Registered in WP_ASYNC mode? PM_SCAN_CHECK_WPASYNC refuses with EPERM if not.
bool TracksAsynchronously(pid_t pid, uint64_t address, uint64_t size) {
  const Descriptor pagemap(
      ::open(("/proc/" + std::to_string(pid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return false;
  abi::PageRegion region;
  abi::PagemapScanArgument scan;
  scan.flags = abi::kScanCheckWpAsync;
  scan.start = address;
  scan.end = address + size;
  scan.regions = reinterpret_cast<uint64_t>(&region);
  scan.regions_max = 1;
  scan.pages_max = 1;
  scan.category_mask = abi::kPageIsWpAllowed;
  scan.return_mask = abi::kPageIsWpAllowed;
  return ::ioctl(pagemap.get(), abi::kPagemapScan, &scan) == 1;
}

}  // namespace

Result<std::unique_ptr<Userfault>> Userfault::Open(pid_t pid, uint64_t address, uint64_t size,
                                                   Purpose purpose) {
  Descriptor process(abi::PidfdOpen(pid));
  if (!process.valid()) {
    return Error::FromErrno("pidfd_open", "process " + std::to_string(pid), ErrorCode::kInject);
  }
  return std::unique_ptr<Userfault>(
      new Userfault(pid, std::move(process), address, size, purpose));
}

Result<std::unique_ptr<Userfault>> Userfault::Acquire(pid_t pid, uint64_t address,
                                                      uint64_t size) {
  auto userfault = Open(pid, address, size, Purpose::kTrackWrites);
  if (!userfault.ok()) return userfault;
  auto adopted = userfault.value()->Adopt();
  if (!adopted.ok()) return adopted.error();
  if (!adopted.value()) HF_TRY(userfault.value()->Inject());
  return userfault;
}

Result<std::unique_ptr<Userfault>> Userfault::AcquireMissing(pid_t pid, uint64_t address,
                                                             uint64_t size) {
  auto userfault = Open(pid, address, size, Purpose::kServeMissing);
  if (userfault.ok()) HF_TRY(userfault.value()->Inject());
  return userfault;
}

bool Userfault::Enable(int event_fd) const {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features =
      purpose_ == Purpose::kTrackWrites ? abi::kTrackerFeatures : abi::kMissingFeatures;
  return ::ioctl(event_fd, UFFDIO_API, &api) == 0;
}

Result<bool> Userfault::Adopt() {
  for (const int remote_fd : UserfaultsOf(pid_)) {
    // Registered by us, and unregistered again, one that serves missing pages would
    // serve them no more: the guest would go on with zeros for what it lacks.
    const auto features = FeaturesOf(pid_, remote_fd);
    if (!features || (*features != 0 && (*features & abi::kFeatureWpAsync) == 0)) continue;
    Descriptor event(abi::PidfdGetfd(process_.get(), remote_fd));
    if (!event.valid()) {
      return Error::FromErrno("pidfd_getfd", "fetching a userfaultfd of QEMU", ErrorCode::kInject);
    }
    // Fails with EINVAL if an earlier life of ours did it already: that is the usual case.
    Enable(event.get());
    // EBUSY: the range belongs to another descriptor, so this one is not ours.
    if (!Register(event.get()).ok()) continue;
    if (!TracksAsynchronously(pid_, address_, size_)) {
      uffdio_range range{address_, size_};
      ::ioctl(event.get(), UFFDIO_UNREGISTER, &range);
      continue;
    }
    event_ = std::move(event);
    remote_fd_ = remote_fd;
    adopted_ = true;
    return true;
  }
  return false;
}

Status Userfault::Inject() {
  const double start_ms = MonotonicMs();
  auto opened = InjectSyscall(pid_, SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK});
  // Without the right to handle kernel faults: asynchronous write protection
  // resolves those inside the kernel, so user mode alone is enough for us.
  constexpr unsigned long kUserModeOnly = 1;  // UFFD_USER_MODE_ONLY
  const bool tracks = purpose_ == Purpose::kTrackWrites;
  if (opened.ok() && opened.value() == -EPERM && tracks) {
    opened = InjectSyscall(pid_, SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | kUserModeOnly});
  }
  if (!opened.ok()) return opened.error();
  if (opened.value() < 0) {
    errno = static_cast<int>(-opened.value());
    return Error::FromErrno("userfaultfd", "opening a userfaultfd inside QEMU",
                            ErrorCode::kUnsupported);
  }
  inject_ms_ = MonotonicMs() - start_ms;
  remote_fd_ = static_cast<int>(opened.value());

  const auto take_over = [this, tracks]() -> Status {
    Descriptor event(abi::PidfdGetfd(process_.get(), remote_fd_));
    if (!event.valid()) {
      return Error::FromErrno("pidfd_getfd", "fetching the userfaultfd", ErrorCode::kInject);
    }
    if (!Enable(event.get())) {
      return Error::FromErrno("UFFDIO_API",
                              tracks ? "the kernel lacks asynchronous write protection"
                                     : "the kernel lacks faults on missing pages of shared memory",
                              ErrorCode::kUnsupported);
    }
    HF_TRY(Register(event.get()));
    event_ = std::move(event);
    return {};
  };
  Status taken = take_over();
  // On failure too QEMU is left as it was found.
  if (!taken.ok()) (void)InjectSyscall(pid_, SYS_close, {static_cast<unsigned long>(remote_fd_)});
  return taken;
}

Status Userfault::Register(int event_fd) const {
  uffdio_register request{};
  request.range = {address_, size_};
  request.mode = purpose_ == Purpose::kTrackWrites ? UFFDIO_REGISTER_MODE_WP
                                                   : UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(event_fd, UFFDIO_REGISTER, &request) != 0) {
    return Error::FromErrno("UFFDIO_REGISTER",
                            errno == EBUSY ? "another userfaultfd has guest RAM already"
                                           : "registering guest RAM",
                            ErrorCode::kUnsupported);
  }
  return {};
}

bool Userfault::EndsWithin(int limit_ms) const {
  pollfd exit{process_.get(), POLLIN, 0};
  return ::poll(&exit, 1, limit_ms) == 1;
}

Status Userfault::Release() {
  if (!event_.valid()) return {};
  uffdio_range range{address_, size_};
  // ESRCH and ENOMEM: its address space is gone already, it itself perhaps not yet. ENOMEM
  // is also what it says, so that is waited for.
  if (::ioctl(event_.get(), UFFDIO_UNREGISTER, &range) != 0 && errno != ESRCH) {
    const int why = errno;
    if (!EndsWithin(why == ENOMEM ? kEndingMsMax : 0)) {
      errno = why;
      return Error::FromErrno("UFFDIO_UNREGISTER", "releasing guest RAM");
    }
  }
  const bool still_there = !process_ended() && IsUserfault(pid_, remote_fd_) &&
                           SameFile(event_.get(), pid_, remote_fd_);
  if (still_there) {
    auto closed = InjectSyscall(pid_, SYS_close, {static_cast<unsigned long>(remote_fd_)});
    // Keeps our copy, so that the caller can try again.
    if (!closed.ok() && !process_ended()) return closed.error();
  }
  event_.Close();
  return {};
}

}  // namespace holdfast
