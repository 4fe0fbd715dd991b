#include "checkpoint/whole_io.h"

#include <unistd.h>

namespace holdfast {

Status ReadAll(int fd, std::byte* target, size_t bytes, uint64_t offset, const std::string& path) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::pread(fd, target + done, bytes - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::FromErrno("pread", path);
    if (got == 0) return Error::Of(ErrorCode::kChecksum, path + " is damaged: it is cut short");
    done += static_cast<size_t>(got);
  }
  return {};
}

Status WriteAll(int fd, const std::byte* source, size_t bytes, uint64_t offset,
                const std::string& path) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t put = ::pwrite(fd, source + done, bytes - done, static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Error::FromErrno("pwrite", path);
    done += static_cast<size_t>(put);
  }
  return {};
}

}  // namespace holdfast
