// QEMU's end of its stream socket, made fit for a gate that does not always
// read. Two things are wrong with it as QEMU 7.2 makes it (docs/relay.md):
//
//  - It is blocking: when the socket is full, QEMU's main loop stands still,
//    with the lock that vCPUs need, and no monitor command is answered, `stop`
//    included. QEMU is written for a non-blocking one, so it is made that.
//  - Its room is the default of 208 KiB: some 90 full frames, less than
//    virtio-net sends in one go (256). A QEMU that waits for room when it is
//    stopped drops that frame (net_vm_change_state_handler). So it is given
//    room for bursts.
//
// The descriptor is fetched from QEMU for that, and closed again. Needs
// CAP_SYS_PTRACE and CAP_NET_ADMIN.
#pragma once

#include <string>

#include "base/result.h"

namespace holdfast {

// `socket_fd`: our end of a connection to `path`, accepted by its peer (as is
// certain when the peer has written). The kernel doubles `send_bytes`, as ever,
// and counts its own overhead in.
Status FitPeerSocket(int socket_fd, const std::string& path, int send_bytes);

}  // namespace holdfast
