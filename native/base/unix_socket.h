// Unix stream sockets: what node's net module cannot do with them, and what
// native threads need.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

// SO_PEERCRED: the process that connected (or listened) at the other end.
Result<pid_t> PeerPid(int socket_fd);

// Sends all of `bytes`, with `fd` attached to the first of them (SCM_RIGHTS).
// The socket may be non-blocking; waits for room no longer than a second.
Status SendWithFd(int socket_fd, std::span<const std::byte> bytes, int fd);

// Connects without waiting: a listener whose queue is full answers EAGAIN.
Result<Descriptor> ConnectUnixNow(const std::string& path);

// Listens at `path`, for this user only. What is left there by a process that
// is gone is replaced; a path at which somebody listens is EADDRINUSE.
Result<Descriptor> ListenUnix(const std::string& path);

}  // namespace holdfast
