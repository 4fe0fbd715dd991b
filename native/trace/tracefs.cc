#include "trace/tracefs.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <array>

#include "base/descriptor.h"

namespace holdfast {
namespace {

// Formats of tracepoints have two or three kilobytes.
constexpr size_t kBytesMax = 64 << 10;

Error Refused(const char* syscall) {
  return Error::FromErrno(syscall, "tracefs is not mounted, and cannot be", ErrorCode::kUnsupported);
}

}  // namespace

Result<std::string> ReadTracefs(const std::string& path) {
  const Descriptor system(::fsopen("tracefs", FSOPEN_CLOEXEC));
  if (!system.valid()) return Refused("fsopen");
  if (::fsconfig(system.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return Refused("fsconfig");
  const Descriptor mount(::fsmount(system.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY));
  if (!mount.valid()) return Refused("fsmount");
  const Descriptor file(::openat(mount.get(), path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return Error::FromErrno("openat", path + " in tracefs", ErrorCode::kUnsupported);
  std::string text;
  std::array<char, 4096> part;
  while (text.size() < kBytesMax) {
    const ssize_t got = ::read(file.get(), part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::FromErrno("read", path + " in tracefs");
    if (got == 0) break;
    text.append(part.data(), static_cast<size_t>(got));
  }
  return text;
}

}  // namespace holdfast
