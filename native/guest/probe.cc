#include "guest/probe.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <vector>

#include "base/descriptor.h"
#include "base/kernel_abi.h"
#include "base/worker_pool.h"
#include "guest/inject.h"
#include "guest/tracker.h"

namespace holdfast {
namespace {

constexpr uint32_t kPageSize = 4096;
constexpr uint64_t kProbePages = 16;

std::string EffectiveCapabilities() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("CapEff:")) return line.substr(line.find_last_of(" \t") + 1);
  }
  return "0";
}

bool IsExactlyPage(const Result<std::vector<PageRun>>& runs, uint64_t page) {
  return runs.ok() && runs.value().size() == 1 && runs.value()[0].first_page == page &&
         runs.value()[0].pages == 1;
}

// Tracks a small shared mapping of our own just as guest RAM is tracked.
bool TracksWrites(int event_fd) {
  const Descriptor file(::memfd_create("holdfast-probe", MFD_CLOEXEC));
  constexpr uint64_t kBytes = kProbePages * kPageSize;
  if (!file.valid() || ::ftruncate(file.get(), kBytes) != 0) return false;
  void* base = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (base == MAP_FAILED) return false;
  const Mapping mapping(base, kBytes);
  const auto address = reinterpret_cast<uint64_t>(base);
  uffdio_register request{};
  request.range = {address, kBytes};
  request.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(event_fd, UFFDIO_REGISTER, &request) != 0) return false;
  auto tracker = DirtyTracker::Open(::getpid(), address, kBytes, kPageSize);
  if (!tracker.ok()) return false;
  WorkerPool alone(1);
  volatile auto* bytes = static_cast<char*>(base);
  bytes[2 * kPageSize] = 1;  // one page exists before, the others are holes
  if (!tracker.value()->Scan(alone).ok()) return false;
  for (const uint64_t page : {2, 5}) {
    bytes[page * kPageSize] = 2;
    if (!IsExactlyPage(tracker.value()->Scan(alone), page)) return false;
  }
  const auto idle = tracker.value()->Scan(alone);
  return idle.ok() && idle.value().empty();
}

void ProbeTracking(KernelProbe& probe) {
  Descriptor event(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!event.valid()) probe.userfaultfd_errno = errno;
  constexpr int kUserModeOnly = 1;  // UFFD_USER_MODE_ONLY: enough for tracking
  if (!event.valid()) {
    event = Descriptor(
        static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUserModeOnly)));
  }
  if (!event.valid()) return;
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = abi::kTrackerFeatures;
  probe.wp_async = ::ioctl(event.get(), UFFDIO_API, &api) == 0;
  probe.pagemap_scan = probe.wp_async && TracksWrites(event.get());
}

// A child that only sleeps; nothing but system calls after the fork, because
// this process has threads. No exit signal: node need not learn of it.
pid_t ForkSleeper() {
  const pid_t child = static_cast<pid_t>(::syscall(SYS_clone, 0UL, nullptr, nullptr, nullptr, 0UL));
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) ::pause();
}

void ProbeInjection(KernelProbe& probe) {
  const Descriptor offered(::eventfd(0, EFD_CLOEXEC));
  const pid_t child = ForkSleeper();
  if (child < 0) return;
  const Descriptor process(abi::PidfdOpen(child));
  // A call without effect, injected as the userfaultfd will be.
  const auto injected = InjectSyscall(child, SYS_getpid, {});
  probe.ptrace = injected.ok() && injected.value() == child;
  const Descriptor fetched(abi::PidfdGetfd(process.get(), offered.get()));
  probe.pidfd_getfd = fetched.valid();
  ::kill(child, SIGKILL);
  while (::waitpid(child, nullptr, __WALL) < 0 && errno == EINTR) continue;
}

}  // namespace

KernelProbe ProbeKernel() {
  KernelProbe probe;
  utsname name{};
  ::uname(&name);
  probe.release = name.release;
  rlimit memlock{};
  ::getrlimit(RLIMIT_MEMLOCK, &memlock);
  if (memlock.rlim_cur != RLIM_INFINITY) probe.memlock_bytes = static_cast<int64_t>(memlock.rlim_cur);
  probe.cap_eff = EffectiveCapabilities();
  ProbeTracking(probe);
  ProbeInjection(probe);
  return probe;
}

}  // namespace holdfast
