// The gate `plug`: the kernel's plug qdisc (net/sched/sch_plug.c) holds what
// guests send, on a detour of each tap over an ifb (tap_detour.h).
//
// What is held, by the kernel's counters, oldest first:
//
//   leaves ◄── [ to release ] [ last epoch ] [ current epoch ] ◄── guest
//                    ▲ kReleaseOne ┘   ▲ kBuffer ┘
//
// Rules of the kernel's that the caller has to mind: kBuffer forgets a last
// epoch that was not released (its frames then lag behind for ever), and frames
// beyond the limit in bytes are dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "output/libnl.h"
#include "output/netlink_socket.h"
#include "output/plug_messages.h"
#include "output/tap_detour.h"

namespace holdfast {

struct PlugStats {
  uint64_t held_frames = 0;
  uint64_t held_bytes = 0;
  uint64_t dropped_frames = 0;
};

// Every call acts on all taps. One thread at a time.
class Plug {
 public:
  // kUnsupported: libnl-route-3 is not installed. In the calling thread's network namespace.
  static Result<std::unique_ptr<Plug>> Open(const std::vector<std::string>& taps,
                                            uint32_t held_bytes_max);

  // True: an earlier process left the gate in place; it holds, with what it held. Completes it if a
  // tap lacks it. Removes what was half made or half removed. Changes nothing else.
  Result<bool> Adopt();
  // Holds from now on. A failure leaves no tap changed.
  Status Install();
  // Of all taps together, as they are before the change.
  Result<PlugStats> Change(PlugAction action);
  // All that is held leaves, oldest first, and the taps are as they were.
  Status Remove();
  Result<PlugStats> Stats();

 private:
  Plug(const Libnl& libnl, NetlinkSocket socket, uint32_t held_bytes_max)
      : messages_(libnl), socket_(std::move(socket)), held_bytes_max_(held_bytes_max) {}
  Status InstallOn(TapDetour& detour);
  Status RemoveFrom(TapDetour& detour);
  Status Execute(const Result<NetlinkMessage>& message, const std::string& what) {
    return ExecuteBuilt(messages_, socket_, message, what);
  }

  const PlugMessages messages_;
  NetlinkSocket socket_;
  const uint32_t held_bytes_max_;
  std::vector<TapDetour> detours_;  // last: they use the above
};

// Whether this host has all that the gate needs, tried in a network namespace
// that lives no longer than the call.
struct PlugProbe {
  // The first thing that fails; empty: nothing does. "libnl", "namespace", "ifb", "redirect", "qdisc".
  std::string lacks;
  std::string reason;
};
PlugProbe ProbePlug();

}  // namespace holdfast
