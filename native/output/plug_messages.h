// The netlink requests of the gate `plug`, built by libnl-route-3 and sent by
// others (netlink_socket.h): tests check the bytes without the kernel's help.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "output/libnl.h"

namespace holdfast {

using NetlinkMessage = std::unique_ptr<nl_msg, void (*)(nl_msg*)>;

// What net/sched/sch_plug.c does on each:
//   kBuffer             what came since the last kBuffer is the last epoch now.
//                       The count of an unreleased last epoch is forgotten!
//   kReleaseOne         as many packets as the last epoch has leave, from the head
//   kReleaseIndefinite  everything leaves, and all that follows
enum class PlugAction { kBuffer, kReleaseOne, kReleaseIndefinite };

class PlugMessages {
 public:
  // Of our plug qdisc, so that no other can be meant by mistake ("HF:").
  static constexpr uint32_t kPlugHandle = 0x48460000;
  // Frames between the qdisc and the other side of the ifb: one release is
  // handed over in one turn, or in few.
  static constexpr uint32_t kIfbQueueFrames = 1024;

  explicit PlugMessages(const Libnl& libnl) : libnl_(libnl) {}

  const Libnl& libnl() const { return libnl_; }

  Result<NetlinkMessage> GetLink(const std::string& name) const;
  Result<NetlinkMessage> AddIfb(const std::string& name) const;
  Result<NetlinkMessage> SetLinkUp(int link) const;
  Result<NetlinkMessage> SetAlias(int link, const std::string& alias) const;
  Result<NetlinkMessage> DeleteLink(int link) const;

  // Holds from the moment it is there. Frames beyond the limit are dropped.
  Result<NetlinkMessage> AddPlug(int ifb, uint32_t held_bytes_max) const;
  Result<NetlinkMessage> ChangePlug(int ifb, PlugAction action) const;

  // Fails in the kernel if the tap has an ingress or clsact qdisc already.
  Result<NetlinkMessage> AddIngress(int tap) const;
  // With its filters.
  Result<NetlinkMessage> DeleteIngress(int tap) const;
  // Every frame that comes in on the tap goes to the ifb instead.
  Result<NetlinkMessage> AddRedirect(int tap, int ifb) const;

 private:
  NetlinkMessage Own(nl_msg* message) const { return NetlinkMessage(message, libnl_.nlmsg_free); }
  Result<NetlinkMessage> Built(int status, nl_msg* message, const char* what) const;

  const Libnl& libnl_;
};

}  // namespace holdfast
