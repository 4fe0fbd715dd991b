// Both sides of a page stream give a peer that vanished without a word up after
// the same time: it may be back by another way.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace holdfast {

inline void GiveUpSilentPeer(int fd) {
  constexpr int kKeepAliveSeconds = 1;
  constexpr int kKeepAliveProbes = 3;
  constexpr int kSilenceMsMax = 4'000;  // for what was sent to it
  const auto set = [fd](int level, int name, int value) {
    ::setsockopt(fd, level, name, &value, sizeof value);
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepAliveSeconds);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepAliveSeconds);
  set(IPPROTO_TCP, TCP_KEEPCNT, kKeepAliveProbes);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, kSilenceMsMax);
}

}  // namespace holdfast
