// What both ends of the library read from their options.
#pragma once

#include <fcntl.h>
#include <napi.h>
#include <sys/socket.h>

#include <cstdint>
#include <limits>
#include <string>

#include "base/descriptor.h"
#include "base/result.h"
#include "js/fields.h"

namespace holdfast::js {

// The descriptor of that name; -1 if there is none.
inline int DescriptorField(Fields& fields, const char* name) {
  if (!fields.Has(name)) return -1;
  const uint64_t fd = fields.Whole(name);
  if (fd > static_cast<uint64_t>(std::numeric_limits<int>::max())) {
    fields.Wrong(name, 0);
    return -1;
  }
  return static_cast<int>(fd);
}

inline uint16_t PortField(Fields& fields, const char* name) {
  const uint64_t port = fields.Whole(name);
  if (port > 65535) fields.Wrong(name, 0);
  return static_cast<uint16_t>(port);
}

// The caller keeps its own, and may close it as soon as this has returned.
inline Result<Descriptor> Duplicate(int fd, const char* what) {
  Descriptor copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return Error::FromErrno("fcntl", std::string(what) + ": descriptor");
  return copy;
}

inline Status CheckStreamSocket(int fd, const char* what) {
  int type = 0;
  socklen_t length = sizeof type;
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0) {
    return Error::FromErrno("getsockopt", std::string(what) + ": descriptor");
  }
  if (type == SOCK_STREAM) return {};
  return Error::Of(ErrorCode::kSyscall, std::string(what) + ": not a stream socket");
}

}  // namespace holdfast::js
