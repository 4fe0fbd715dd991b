// The two things node's net module cannot do with a Unix socket.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>

#include "base/result.h"

namespace holdfast {

// SO_PEERCRED: the process that connected (or listened) at the other end.
Result<pid_t> PeerPid(int socket_fd);

// Sends all of `bytes`, with `fd` attached to the first of them (SCM_RIGHTS).
// The socket may be non-blocking; waits for room no longer than a second.
Status SendWithFd(int socket_fd, std::span<const std::byte> bytes, int fd);

}  // namespace holdfast
