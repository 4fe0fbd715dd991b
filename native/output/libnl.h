// libnl-3 and libnl-route-3, opened at first use: the addon loads on hosts that
// lack them, and only the gate `plug` needs them. Headers at build time only.
#pragma once

#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/action.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/classifier.h>
#include <netlink/route/cls/u32.h>
#include <netlink/route/link.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/qdisc/plug.h>
#include <netlink/route/tc.h>

#include "base/result.h"

#define HF_LIBNL_CORE(X) X(nl_geterror) X(nlmsg_free) X(nlmsg_hdr)

#define HF_LIBNL_ROUTE(X)              \
  X(rtnl_act_alloc)                    \
  X(rtnl_act_put)                      \
  X(rtnl_cls_alloc)                    \
  X(rtnl_cls_build_add_request)        \
  X(rtnl_cls_put)                      \
  X(rtnl_cls_set_prio)                 \
  X(rtnl_cls_set_protocol)             \
  X(rtnl_link_alloc)                   \
  X(rtnl_link_build_add_request)       \
  X(rtnl_link_build_change_request)    \
  X(rtnl_link_build_delete_request)    \
  X(rtnl_link_build_get_request)       \
  X(rtnl_link_put)                     \
  X(rtnl_link_set_flags)               \
  X(rtnl_link_set_ifalias)             \
  X(rtnl_link_set_ifindex)             \
  X(rtnl_link_set_name)                \
  X(rtnl_link_set_txqlen)              \
  X(rtnl_link_set_type)                \
  X(rtnl_mirred_set_action)            \
  X(rtnl_mirred_set_ifindex)           \
  X(rtnl_mirred_set_policy)            \
  X(rtnl_qdisc_alloc)                  \
  X(rtnl_qdisc_build_add_request)      \
  X(rtnl_qdisc_build_delete_request)   \
  X(rtnl_qdisc_plug_buffer)            \
  X(rtnl_qdisc_plug_release_indefinite) \
  X(rtnl_qdisc_plug_release_one)       \
  X(rtnl_qdisc_plug_set_limit)         \
  X(rtnl_qdisc_put)                    \
  X(rtnl_tc_set_handle)                \
  X(rtnl_tc_set_ifindex)               \
  X(rtnl_tc_set_kind)                  \
  X(rtnl_tc_set_parent)                \
  X(rtnl_u32_add_action)               \
  X(rtnl_u32_add_key_uint32)           \
  X(rtnl_u32_set_cls_terminal)

namespace holdfast {

// The functions that are used, with the types their headers give them.
struct Libnl {
#define HF_MEMBER(name) decltype(&::name) name = nullptr;
  HF_LIBNL_CORE(HF_MEMBER)
  HF_LIBNL_ROUTE(HF_MEMBER)
#undef HF_MEMBER

  // The libraries stay open to the end of the process: they register parsers
  // of theirs at load time. kUnsupported: one is not installed, or too old.
  static Result<const Libnl*> Load();
};

}  // namespace holdfast
