#include <sched.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/thread.h"
#include "output/plug.h"

namespace holdfast {
namespace {

// Any name: the namespace is ours alone.
constexpr char kIfbName[] = "hf-probe";
constexpr uint32_t kHeldBytes = 1 << 20;

PlugProbe Lacks(const char* what, std::string reason) {
  return PlugProbe{.lacks = what, .reason = std::move(reason)};
}

// What the kernel says, or the option to blame where it does not know the kind of thing asked for.
PlugProbe Lacks(const char* what, const Error& error, int unknown_errno, const char* option) {
  return Lacks(what, error.sys_errno == unknown_errno
                         ? std::string("this kernel lacks ") + option
                         : error.message);
}

PlugProbe ProbeHere() {
  const auto libnl = Libnl::Load();
  if (!libnl.ok()) return Lacks("libnl", libnl.error().message);
  if (::unshare(CLONE_NEWNET) != 0) {
    return Lacks("namespace", std::string("unshare(CLONE_NEWNET): ") + std::strerror(errno));
  }
  auto socket = NetlinkSocket::Open();
  if (!socket.ok()) return Lacks("namespace", socket.error().message);
  const PlugMessages messages(*libnl.value());
  const auto execute = [&](const Result<NetlinkMessage>& message, const char* what) {
    return ExecuteBuilt(messages, socket.value(), message, what);
  };

  Status status = execute(messages.AddIfb(kIfbName), "making an ifb");
  if (!status.ok()) return Lacks("ifb", status.error(), EOPNOTSUPP, "ifb (CONFIG_IFB)");
  TapDetour detour(messages, socket.value(), kIfbName);
  const auto link = detour.Link(kIfbName);
  if (!link.ok()) return Lacks("ifb", link.error().message);
  HF_ASSERT(link.value().has_value());  // nobody else is in this namespace
  const int ifb = link.value()->index;

  status = execute(messages.AddIngress(ifb), "adding an ingress qdisc");
  if (status.ok()) status = execute(messages.AddRedirect(ifb, ifb), "redirecting");
  if (!status.ok()) {
    return Lacks("redirect", status.error(), ENOENT,
                 "one of CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED");
  }
  status = execute(messages.AddPlug(ifb, kHeldBytes), "adding a plug qdisc");
  if (!status.ok()) {
    return Lacks("qdisc", status.error(), ENOENT, "the plug qdisc (CONFIG_NET_SCH_PLUG)");
  }
  return {};
}

}  // namespace

PlugProbe ProbePlug() {
  PlugProbe probe;
  // unshare changes its thread for good; the namespace ends with it.
  Thread thread("hf-plug-probe", [&probe] { probe = ProbeHere(); });
  thread.Join();
  return probe;
}

}  // namespace holdfast
