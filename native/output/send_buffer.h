// Room in QEMU's end of its stream socket.
//
// A Unix socket's room is its writer's SO_SNDBUF, 208 KiB by default: some 90
// full frames, less than virtio-net sends in one go (256). QEMU that finds no
// room waits, and when the VM is stopped while it waits, it drops that frame
// (net_vm_change_state_handler purges the queue). So the relay gives that end
// the room of a burst: it fetches the descriptor from QEMU, sets the option,
// and closes it again. Needs CAP_SYS_PTRACE and CAP_NET_ADMIN.
#pragma once

#include <string>

#include "base/result.h"

namespace holdfast {

// `socket_fd`: our end of a connection to `path`, accepted by its peer (as is
// certain when the peer has written). The kernel doubles `bytes`, as ever, and
// counts its own overhead in.
Status WidenPeerSendBuffer(int socket_fd, const std::string& path, int bytes);

}  // namespace holdfast
