// Sends what a guest sends (what comes in on its tap) around through an ifb,
// so that a qdisc on the ifb can hold it:
//
//   QEMU ──► tap ──ingress, u32, mirred──► [ root qdisc of the ifb ] ──► ifb ──► back to where the
//                                                                                tap would deliver
//
// The ifb's alias says how far its making or removal came, for whoever finds it
// after a crash. It outlives its maker on purpose: what is held stays held.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "base/result.h"
#include "output/netlink_socket.h"
#include "output/plug_messages.h"

namespace holdfast {

// What RTM_GETLINK tells of a network device, as far as it matters here.
struct LinkFacts {
  int index = 0;
  std::string kind;   // "ifb", "tun"; empty for hardware
  std::string alias;
  uint64_t received_frames = 0;  // for an ifb: from its qdisc
  uint64_t sent_frames = 0;      // for an ifb: on to where they were bound
  uint64_t refused_frames = 0;   // for an ifb: of those received, not redirected ones
};

// Sends what was built, or passes on why it was not.
Status ExecuteBuilt(const PlugMessages& messages, NetlinkSocket& socket,
                    const Result<NetlinkMessage>& message, const std::string& what);

class TapDetour {
 public:
  enum class State {
    kAbsent,
    kUnfinished,  // neither in use nor holding what is to be kept
    kComplete,
    kOpening,  // output was let go of: what leaves has left
  };

  TapDetour(const PlugMessages& messages, NetlinkSocket& socket, std::string tap)
      : messages_(messages), socket_(socket), tap_(std::move(tap)), ifb_name_(IfbName(tap_)) {}

  // "hf-" and 12 hexadecimal digits that follow from the tap's name.
  static std::string IfbName(const std::string& tap);

  // kUnsupported: the tap is not there, somebody else uses its ingress side, or
  // a foreign device has the ifb's name.
  Result<State> Find();
  // Of the ifb, after Find or Create.
  int ifb() const { return ifb_; }
  const std::string& tap() const { return tap_; }

  // The ifb alone, down; give it its root qdisc before Divert. A failure leaves nothing behind.
  Status Create();
  // From here on the tap's frames go through the ifb. The caller removes it after a failure.
  Status Divert();
  // Before output is let go of for good. Does nothing to a detour that was never complete.
  Status MarkOpening();
  // Waits until the ifb's qdisc and the ifb are empty, for `milliseconds` at most. False: they are not.
  Result<bool> Drained(double milliseconds);
  // The tap is as it was. What the ifb's qdisc still holds is lost.
  Status StopDiverting();
  Status Delete();

  Result<std::optional<LinkFacts>> Link(const std::string& name);

 private:
  Status Execute(const Result<NetlinkMessage>& message, const std::string& what) {
    return ExecuteBuilt(messages_, socket_, message, what);
  }
  Status ForeignIngress();

  const PlugMessages& messages_;
  NetlinkSocket& socket_;
  const std::string tap_;
  const std::string ifb_name_;
  int tap_index_ = 0;
  int ifb_ = 0;
  bool ingress_is_ours_ = false;
};

// The root or ingress qdisc of a link; nullopt where it has only the kernel's default.
struct QdiscFacts {
  std::string kind;
  uint32_t handle = 0;
  uint64_t held_frames = 0;
  uint64_t held_bytes = 0;
  uint64_t dropped_frames = 0;
};
Result<std::optional<QdiscFacts>> FindQdisc(NetlinkSocket& socket, int link, uint32_t parent);

}  // namespace holdfast
