#include "capture/staging_file.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

namespace holdfast {
namespace {

constexpr uint64_t kHugePageBytes = 2ull << 20;

// Not by the C library: it declares them from 2.36 on only.
int FsOpen(const char* type) {
  return static_cast<int>(::syscall(SYS_fsopen, type, FSOPEN_CLOEXEC));
}
int FsConfigure(const Descriptor& context, unsigned command, const char* key, const char* value) {
  return static_cast<int>(::syscall(SYS_fsconfig, context.get(), command, key, value, 0));
}
int FsMount(const Descriptor& context) {
  return static_cast<int>(
      ::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC));
}

// Needs CAP_SYS_ADMIN and a kernel with transparent huge pages, and nothing of
// the system's settings: /sys/kernel/mm/transparent_hugepage/shmem_enabled
// speaks of memfds only. Nobody else can reach the mount; it goes with the file.
Result<Descriptor> OpenHuge(uint64_t bytes) {
  const Descriptor context(FsOpen("tmpfs"));
  if (!context.valid()) return Error::FromErrno("fsopen", "staging on huge pages");
  if (FsConfigure(context, FSCONFIG_SET_STRING, "huge", "always") != 0 ||
      FsConfigure(context, FSCONFIG_SET_STRING, "size", std::to_string(bytes).c_str()) != 0 ||
      FsConfigure(context, FSCONFIG_CMD_CREATE, nullptr, nullptr) != 0) {
    return Error::FromErrno("fsconfig", "staging on huge pages");
  }
  const Descriptor mount(FsMount(context));
  if (!mount.valid()) return Error::FromErrno("fsmount", "staging on huge pages");
  Descriptor file(::openat(mount.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file.valid()) return Error::FromErrno("open", "staging on huge pages");
  return file;
}

Result<Descriptor> OpenSmall() {
  Descriptor file(::memfd_create("holdfast-staging", MFD_CLOEXEC));
  if (!file.valid()) return Error::FromErrno("memfd_create", "staging pool", ErrorCode::kNoSpace);
  return file;
}

}  // namespace

Result<StagingFile> OpenStagingFile(uint64_t bytes, StagingPages pages) {
  StagingFile staging;
  staging.bytes = bytes;
  if (pages != StagingPages::kSmall) {
    const uint64_t whole = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    auto file = OpenHuge(whole);
    if (!file.ok() && pages == StagingPages::kHuge) return file.error();
    if (file.ok()) {
      staging.file = std::move(file).value();
      staging.huge = true;
      staging.bytes = whole;
    }
  }
  if (!staging.huge) {
    auto file = OpenSmall();
    if (!file.ok()) return file.error();
    staging.file = std::move(file).value();
  }
  if (::ftruncate(staging.file.get(), static_cast<off_t>(staging.bytes)) != 0) {
    return Error::FromErrno("ftruncate", "staging pool", ErrorCode::kNoSpace);
  }
  return staging;
}

}  // namespace holdfast
