#include "output/plug_messages.h"

#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>

namespace holdfast {
namespace {

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

constexpr uint32_t kIngressHandle = TC_H_MAKE(TC_H_INGRESS, 0);
constexpr uint16_t kRedirectPriority = 1;

template <typename T>
rtnl_tc* AsTc(const Owned<T>& object) {
  return reinterpret_cast<rtnl_tc*>(object.get());  // TC_CAST of libnl, typed
}

}  // namespace

Result<NetlinkMessage> PlugMessages::Built(int status, nl_msg* message, const char* what) const {
  if (status < 0) {
    return Error::Of(ErrorCode::kSyscall,
                     std::string("building the request to ") + what + ": " +
                         libnl_.nl_geterror(status));
  }
  return Own(message);
}

Result<NetlinkMessage> PlugMessages::GetLink(const std::string& name) const {
  nl_msg* message = nullptr;
  const int status = libnl_.rtnl_link_build_get_request(0, name.c_str(), &message);
  return Built(status, message, "look for a link");
}

Result<NetlinkMessage> PlugMessages::AddIfb(const std::string& name) const {
  const Owned<rtnl_link> link(libnl_.rtnl_link_alloc(), libnl_.rtnl_link_put);
  HF_ASSERT(link != nullptr);
  libnl_.rtnl_link_set_name(link.get(), name.c_str());
  libnl_.rtnl_link_set_txqlen(link.get(), kIfbQueueFrames);
  int status = libnl_.rtnl_link_set_type(link.get(), "ifb");
  nl_msg* message = nullptr;
  if (status >= 0) {
    status = libnl_.rtnl_link_build_add_request(link.get(), NLM_F_CREATE | NLM_F_EXCL, &message);
  }
  return Built(status, message, "make an ifb");
}

Result<NetlinkMessage> PlugMessages::SetLinkUp(int link) const {
  const Owned<rtnl_link> which(libnl_.rtnl_link_alloc(), libnl_.rtnl_link_put);
  const Owned<rtnl_link> change(libnl_.rtnl_link_alloc(), libnl_.rtnl_link_put);
  HF_ASSERT(which != nullptr && change != nullptr);
  libnl_.rtnl_link_set_ifindex(which.get(), link);
  libnl_.rtnl_link_set_flags(change.get(), IFF_UP);
  nl_msg* message = nullptr;
  const int status =
      libnl_.rtnl_link_build_change_request(which.get(), change.get(), 0, &message);
  return Built(status, message, "set a link up");
}

Result<NetlinkMessage> PlugMessages::SetAlias(int link, const std::string& alias) const {
  const Owned<rtnl_link> which(libnl_.rtnl_link_alloc(), libnl_.rtnl_link_put);
  const Owned<rtnl_link> change(libnl_.rtnl_link_alloc(), libnl_.rtnl_link_put);
  HF_ASSERT(which != nullptr && change != nullptr);
  libnl_.rtnl_link_set_ifindex(which.get(), link);
  libnl_.rtnl_link_set_ifalias(change.get(), alias.c_str());
  nl_msg* message = nullptr;
  const int status =
      libnl_.rtnl_link_build_change_request(which.get(), change.get(), 0, &message);
  return Built(status, message, "give a link its alias");
}

Result<NetlinkMessage> PlugMessages::DeleteLink(int link) const {
  const Owned<rtnl_link> which(libnl_.rtnl_link_alloc(), libnl_.rtnl_link_put);
  HF_ASSERT(which != nullptr);
  libnl_.rtnl_link_set_ifindex(which.get(), link);
  nl_msg* message = nullptr;
  const int status = libnl_.rtnl_link_build_delete_request(which.get(), &message);
  return Built(status, message, "remove a link");
}

Result<NetlinkMessage> PlugMessages::AddPlug(int ifb, uint32_t held_bytes_max) const {
  const Owned<rtnl_qdisc> qdisc(libnl_.rtnl_qdisc_alloc(), libnl_.rtnl_qdisc_put);
  HF_ASSERT(qdisc != nullptr);
  libnl_.rtnl_tc_set_ifindex(AsTc(qdisc), ifb);
  libnl_.rtnl_tc_set_parent(AsTc(qdisc), TC_H_ROOT);
  libnl_.rtnl_tc_set_handle(AsTc(qdisc), kPlugHandle);
  int status = libnl_.rtnl_tc_set_kind(AsTc(qdisc), "plug");
  if (status >= 0) {
    status = libnl_.rtnl_qdisc_plug_set_limit(qdisc.get(), static_cast<int>(held_bytes_max));
  }
  // Keeps the limit in the message: plug_init reads that, and begins to hold.
  if (status >= 0) status = libnl_.rtnl_qdisc_plug_buffer(qdisc.get());
  nl_msg* message = nullptr;
  if (status >= 0) {
    status = libnl_.rtnl_qdisc_build_add_request(qdisc.get(), NLM_F_CREATE | NLM_F_EXCL, &message);
  }
  return Built(status, message, "add a plug qdisc");
}

Result<NetlinkMessage> PlugMessages::ChangePlug(int ifb, PlugAction action) const {
  const Owned<rtnl_qdisc> qdisc(libnl_.rtnl_qdisc_alloc(), libnl_.rtnl_qdisc_put);
  HF_ASSERT(qdisc != nullptr);
  libnl_.rtnl_tc_set_ifindex(AsTc(qdisc), ifb);
  libnl_.rtnl_tc_set_parent(AsTc(qdisc), TC_H_ROOT);
  libnl_.rtnl_tc_set_handle(AsTc(qdisc), kPlugHandle);
  int status = libnl_.rtnl_tc_set_kind(AsTc(qdisc), "plug");
  if (status >= 0) {
    switch (action) {
      case PlugAction::kBuffer:
        status = libnl_.rtnl_qdisc_plug_buffer(qdisc.get());
        break;
      case PlugAction::kReleaseOne:
        status = libnl_.rtnl_qdisc_plug_release_one(qdisc.get());
        break;
      case PlugAction::kReleaseIndefinite:
        status = libnl_.rtnl_qdisc_plug_release_indefinite(qdisc.get());
        break;
    }
  }
  // Without NLM_F_CREATE: a change of what is there, never a new one.
  nl_msg* message = nullptr;
  if (status >= 0) status = libnl_.rtnl_qdisc_build_add_request(qdisc.get(), 0, &message);
  return Built(status, message, "change a plug qdisc");
}

Result<NetlinkMessage> PlugMessages::AddIngress(int tap) const {
  const Owned<rtnl_qdisc> qdisc(libnl_.rtnl_qdisc_alloc(), libnl_.rtnl_qdisc_put);
  HF_ASSERT(qdisc != nullptr);
  libnl_.rtnl_tc_set_ifindex(AsTc(qdisc), tap);
  libnl_.rtnl_tc_set_parent(AsTc(qdisc), TC_H_INGRESS);
  libnl_.rtnl_tc_set_handle(AsTc(qdisc), kIngressHandle);
  int status = libnl_.rtnl_tc_set_kind(AsTc(qdisc), "ingress");
  nl_msg* message = nullptr;
  if (status >= 0) {
    status = libnl_.rtnl_qdisc_build_add_request(qdisc.get(), NLM_F_CREATE | NLM_F_EXCL, &message);
  }
  return Built(status, message, "add an ingress qdisc");
}

Result<NetlinkMessage> PlugMessages::DeleteIngress(int tap) const {
  const Owned<rtnl_qdisc> qdisc(libnl_.rtnl_qdisc_alloc(), libnl_.rtnl_qdisc_put);
  HF_ASSERT(qdisc != nullptr);
  libnl_.rtnl_tc_set_ifindex(AsTc(qdisc), tap);
  libnl_.rtnl_tc_set_parent(AsTc(qdisc), TC_H_INGRESS);
  libnl_.rtnl_tc_set_handle(AsTc(qdisc), kIngressHandle);
  int status = libnl_.rtnl_tc_set_kind(AsTc(qdisc), "ingress");
  nl_msg* message = nullptr;
  if (status >= 0) status = libnl_.rtnl_qdisc_build_delete_request(qdisc.get(), &message);
  return Built(status, message, "remove an ingress qdisc");
}

Result<NetlinkMessage> PlugMessages::AddRedirect(int tap, int ifb) const {
  const Owned<rtnl_cls> filter(libnl_.rtnl_cls_alloc(), libnl_.rtnl_cls_put);
  const Owned<rtnl_act> redirect(libnl_.rtnl_act_alloc(), libnl_.rtnl_act_put);
  HF_ASSERT(filter != nullptr && redirect != nullptr);
  int status = libnl_.rtnl_tc_set_kind(AsTc(redirect), "mirred");
  if (status >= 0) status = libnl_.rtnl_mirred_set_action(redirect.get(), TCA_EGRESS_REDIR);
  if (status >= 0) status = libnl_.rtnl_mirred_set_policy(redirect.get(), TC_ACT_STOLEN);
  if (status >= 0) {
    status = libnl_.rtnl_mirred_set_ifindex(redirect.get(), static_cast<uint32_t>(ifb));
  }
  libnl_.rtnl_tc_set_ifindex(AsTc(filter), tap);
  libnl_.rtnl_tc_set_parent(AsTc(filter), kIngressHandle);
  if (status >= 0) status = libnl_.rtnl_tc_set_kind(AsTc(filter), "u32");
  libnl_.rtnl_cls_set_prio(filter.get(), kRedirectPriority);
  libnl_.rtnl_cls_set_protocol(filter.get(), ETH_P_ALL);
  // Nothing is compared, so every frame matches.
  if (status >= 0) status = libnl_.rtnl_u32_add_key_uint32(filter.get(), 0, 0, 0, 0);
  if (status >= 0) status = libnl_.rtnl_u32_set_cls_terminal(filter.get());
  if (status >= 0) status = libnl_.rtnl_u32_add_action(filter.get(), redirect.get());
  nl_msg* message = nullptr;
  if (status >= 0) {
    status = libnl_.rtnl_cls_build_add_request(filter.get(), NLM_F_CREATE | NLM_F_EXCL, &message);
  }
  return Built(status, message, "redirect a tap's frames");
}

}  // namespace holdfast
