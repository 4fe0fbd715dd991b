#include "output/tap_detour.h"

#include <linux/gen_stats.h>
#include <linux/if_link.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/clock.h"

namespace holdfast {
namespace {

// As `ip link` shows them; the first word makes it ours.
constexpr char kPreparing[] = "holdfast: being made";
constexpr char kHolding[] = "holdfast: holds guest output";
constexpr char kOpening[] = "holdfast: being removed";

constexpr double kDrainStepMs = 1;

template <typename T>
T ReadFixed(std::span<const std::byte> bytes) {
  T value{};
  // A kernel older or newer than the headers has fewer or more fields at the end.
  if (!bytes.empty()) std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  return value;
}

std::string ReadText(std::span<const std::byte> bytes) {
  const auto* first = reinterpret_cast<const char*>(bytes.data());
  return std::string(first, std::find(first, first + bytes.size(), '\0'));
}

LinkFacts ParseLink(std::span<const std::byte> answer) {
  const auto attributes = AttributesOf(answer, sizeof(ifinfomsg));
  const auto header =
      ReadFixed<ifinfomsg>(answer.subspan(std::min<size_t>(NLMSG_HDRLEN, answer.size())));
  const auto stats = ReadFixed<rtnl_link_stats64>(FindAttribute(attributes, IFLA_STATS64));
  return LinkFacts{
      .index = header.ifi_index,
      .kind = ReadText(FindAttribute(FindAttribute(attributes, IFLA_LINKINFO), IFLA_INFO_KIND)),
      .alias = ReadText(FindAttribute(attributes, IFLA_IFALIAS)),
      .received_frames = stats.rx_packets,
      .sent_frames = stats.tx_packets,
      .refused_frames = stats.rx_dropped,
  };
}

bool IsAbsent(const Error& error) {
  // For a qdisc the kernel may say EINVAL where only a built-in one is left.
  return error.sys_errno == ENOENT || error.sys_errno == ENODEV || error.sys_errno == EINVAL;
}

}  // namespace

Result<std::optional<QdiscFacts>> FindQdisc(NetlinkSocket& socket, int link, uint32_t parent) {
  struct {
    nlmsghdr header;
    tcmsg which;
  } request{};
  request.header.nlmsg_len = NLMSG_LENGTH(sizeof(tcmsg));
  request.header.nlmsg_type = RTM_GETQDISC;
  // Without it the kernel tells the listeners of its notifications, but not who asks.
  request.header.nlmsg_flags = NLM_F_ECHO;
  request.which.tcm_family = AF_UNSPEC;
  request.which.tcm_ifindex = link;
  request.which.tcm_parent = parent;
  const auto answer = socket.Query(&request.header, "looking for a qdisc");
  if (!answer.ok()) {
    if (IsAbsent(answer.error())) return std::optional<QdiscFacts>();
    return answer.error();
  }
  // So it speaks of the built-in ones, which a removed qdisc leaves.
  if (answer.value().empty()) return std::optional<QdiscFacts>();
  const std::span<const std::byte> bytes(answer.value());
  const auto attributes = AttributesOf(bytes, sizeof(tcmsg));
  const auto header = ReadFixed<tcmsg>(bytes.subspan(std::min<size_t>(NLMSG_HDRLEN, bytes.size())));
  const auto queue = ReadFixed<gnet_stats_queue>(
      FindAttribute(FindAttribute(attributes, TCA_STATS2), TCA_STATS_QUEUE));
  return std::optional(QdiscFacts{
      .kind = ReadText(FindAttribute(attributes, TCA_KIND)),
      .handle = header.tcm_handle,
      .held_frames = queue.qlen,
      .held_bytes = queue.backlog,
      .dropped_frames = queue.drops,
  });
}

Status ExecuteBuilt(const PlugMessages& messages, NetlinkSocket& socket,
                    const Result<NetlinkMessage>& message, const std::string& what) {
  if (!message.ok()) return message.error();
  return socket.Execute(messages.libnl().nlmsg_hdr(message.value().get()), what);
}

std::string TapDetour::IfbName(const std::string& tap) {
  char name[16];
  const uint64_t hash = XXH3_64bits(tap.data(), tap.size());
  std::snprintf(name, sizeof name, "hf-%012llx",
                static_cast<unsigned long long>(hash & 0xffffffffffff));
  return name;
}

Result<std::optional<LinkFacts>> TapDetour::Link(const std::string& name) {
  const auto message = messages_.GetLink(name);
  if (!message.ok()) return message.error();
  const auto answer = socket_.Query(messages_.libnl().nlmsg_hdr(message.value().get()),
                                    "looking for the network device " + name);
  if (answer.ok()) return std::optional(ParseLink(answer.value()));
  if (IsAbsent(answer.error())) return std::optional<LinkFacts>();
  return answer.error();
}

Status TapDetour::ForeignIngress() {
  const auto ingress = FindQdisc(socket_, tap_index_, TC_H_INGRESS);
  if (!ingress.ok()) return ingress.error();
  if (!ingress.value().has_value()) return {};
  return Error::Of(ErrorCode::kUnsupported,
                   "somebody else has a qdisc on the ingress side of " + tap_ + " (" +
                       ingress.value()->kind + ")");
}

Result<TapDetour::State> TapDetour::Find() {
  const auto tap = Link(tap_);
  if (!tap.ok()) return tap.error();
  if (!tap.value().has_value()) {
    return Error::Of(ErrorCode::kUnsupported,
                     "there is no network device " + tap_ + " in this network namespace");
  }
  tap_index_ = tap.value()->index;
  const auto ifb = Link(ifb_name_);
  if (!ifb.ok()) return ifb.error();
  if (!ifb.value().has_value()) {
    ifb_ = 0;
    HF_TRY(ForeignIngress());
    return State::kAbsent;
  }
  const LinkFacts& found = *ifb.value();
  if (found.kind != "ifb") {
    return Error::Of(ErrorCode::kUnsupported,
                     "the network device " + ifb_name_ + " is not ours, and has the name we need");
  }
  ifb_ = found.index;
  // The first mark is set when the ingress side was seen to be free, and before it is used.
  ingress_is_ours_ =
      found.alias == kPreparing || found.alias == kHolding || found.alias == kOpening;
  if (found.alias == kHolding) return State::kComplete;
  return found.alias == kOpening ? State::kOpening : State::kUnfinished;
}

Status TapDetour::Create() {
  HF_TRY(Execute(messages_.AddIfb(ifb_name_), "making the ifb " + ifb_name_));
  const auto made = Link(ifb_name_);
  if (!made.ok()) return made.error();
  if (!made.value().has_value()) {
    return Error::Of(ErrorCode::kSyscall, "the ifb " + ifb_name_ + " was removed as it was made");
  }
  ifb_ = made.value()->index;
  ingress_is_ours_ = false;
  return {};
}

Status TapDetour::Divert() {
  HF_TRY(Execute(messages_.SetLinkUp(ifb_), "setting " + ifb_name_ + " up"));
  HF_TRY(ForeignIngress());
  HF_TRY(Execute(messages_.SetAlias(ifb_, kPreparing), "marking " + ifb_name_));
  HF_TRY(Execute(messages_.AddIngress(tap_index_), "adding an ingress qdisc to " + tap_));
  ingress_is_ours_ = true;
  HF_TRY(Execute(messages_.AddRedirect(tap_index_, ifb_),
                 "redirecting " + tap_ + " to " + ifb_name_));
  return Execute(messages_.SetAlias(ifb_, kHolding), "marking " + ifb_name_);
}

Status TapDetour::MarkOpening() {
  if (!ingress_is_ours_) return {};
  return Execute(messages_.SetAlias(ifb_, kOpening), "marking " + ifb_name_);
}

Result<bool> TapDetour::Drained(double milliseconds) {
  const double deadline_ms = MonotonicMs() + milliseconds;
  for (;;) {
    const auto qdisc = FindQdisc(socket_, ifb_, TC_H_ROOT);
    if (!qdisc.ok()) return qdisc.error();
    const auto link = Link(ifb_name_);
    if (!link.ok()) return link.error();
    const bool queue_is_empty = !qdisc.value().has_value() || qdisc.value()->held_frames == 0;
    const bool ifb_is_empty = !link.value().has_value() ||
                              link.value()->sent_frames + link.value()->refused_frames >=
                                  link.value()->received_frames;
    if (queue_is_empty && ifb_is_empty) return true;
    if (MonotonicMs() >= deadline_ms) return false;
    const timespec step{.tv_sec = 0, .tv_nsec = static_cast<long>(kDrainStepMs * 1e6)};
    ::nanosleep(&step, nullptr);
  }
}

Status TapDetour::StopDiverting() {
  if (!ingress_is_ours_) return {};
  const Status removed =
      Execute(messages_.DeleteIngress(tap_index_), "removing the ingress qdisc of " + tap_);
  if (!removed.ok() && !IsAbsent(removed.error())) return removed;
  ingress_is_ours_ = false;
  return {};
}

Status TapDetour::Delete() {
  const Status removed = Execute(messages_.DeleteLink(ifb_), "removing " + ifb_name_);
  if (!removed.ok() && !IsAbsent(removed.error())) return removed;
  ifb_ = 0;
  return {};
}

}  // namespace holdfast
