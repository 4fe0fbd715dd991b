// A frame on QEMU's `-netdev stream` socket (net/stream.c, net_fill_rstate):
// its length as 4 bytes, big-endian, then the Ethernet frame.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast {

inline constexpr size_t kPacketLengthBytes = 4;
// NET_BUFSIZE of QEMU, which ends a connection that announces more.
inline constexpr uint32_t kPacketBytesMax = 4096 + 65536;

}  // namespace holdfast
