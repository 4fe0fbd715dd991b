#include "output/plug.h"

#include <linux/pkt_sched.h>

#include <cerrno>
#include <utility>

namespace holdfast {
namespace {

// What the qdisc lets go of passes the ifb within milliseconds, at any load.
constexpr double kDrainMsMax = 2000;
constexpr char kKind[] = "plug";

}  // namespace

Result<std::unique_ptr<Plug>> Plug::Open(const std::vector<std::string>& taps,
                                         uint32_t held_bytes_max) {
  const auto libnl = Libnl::Load();
  if (!libnl.ok()) return libnl.error();
  auto socket = NetlinkSocket::Open();
  if (!socket.ok()) return socket.error();
  std::unique_ptr<Plug> plug(
      new Plug(*libnl.value(), std::move(socket).value(), held_bytes_max));
  plug->detours_.reserve(taps.size());
  for (const std::string& tap : taps) {
    plug->detours_.emplace_back(plug->messages_, plug->socket_, tap);
  }
  return plug;
}

Result<bool> Plug::Adopt() {
  std::vector<TapDetour*> missing;
  for (TapDetour& detour : detours_) {
    const auto state = detour.Find();
    if (!state.ok()) return state.error();
    bool in_place = false;
    if (state.value() == TapDetour::State::kComplete) {
      const auto qdisc = FindQdisc(socket_, detour.ifb(), TC_H_ROOT);
      if (!qdisc.ok()) return qdisc.error();
      in_place = qdisc.value().has_value() && qdisc.value()->kind == kKind;
    }
    if (in_place) continue;
    if (state.value() != TapDetour::State::kAbsent) HF_TRY(RemoveFrom(detour));
    missing.push_back(&detour);
  }
  if (missing.size() == detours_.size()) return false;
  for (TapDetour* detour : missing) HF_TRY(InstallOn(*detour));
  return true;
}

Status Plug::Install() {
  for (size_t done = 0; done < detours_.size(); ++done) {
    const Status installed = InstallOn(detours_[done]);
    if (installed.ok()) continue;
    // The VM hasn't run since: the others hold nothing.
    for (size_t i = 0; i < done; ++i) HF_TRY(RemoveFrom(detours_[i]));
    return installed;
  }
  return {};
}

Status Plug::InstallOn(TapDetour& detour) {
  const auto state = detour.Find();
  if (!state.ok()) return state.error();
  if (state.value() != TapDetour::State::kAbsent) HF_TRY(RemoveFrom(detour));
  HF_TRY(detour.Create());
  Status status = Execute(messages_.AddPlug(detour.ifb(), held_bytes_max_),
                          "adding a plug qdisc to the ifb of " + detour.tap());
  if (status.ok()) {
    status = detour.Divert();
  } else if (status.error().sys_errno == ENOENT) {
    status = Error::Of(ErrorCode::kUnsupported,
                       "this kernel lacks the plug qdisc (CONFIG_NET_SCH_PLUG)");
  }
  if (status.ok()) return status;
  HF_TRY(detour.StopDiverting());
  HF_TRY(detour.Delete());
  return status;
}

Result<PlugStats> Plug::Change(PlugAction action) {
  auto stats = Stats();
  if (!stats.ok()) return stats;
  for (TapDetour& detour : detours_) {
    HF_TRY(Execute(messages_.ChangePlug(detour.ifb(), action),
                   "changing the plug qdisc of " + detour.tap()));
  }
  return stats;
}

Status Plug::Remove() {
  for (TapDetour& detour : detours_) {
    const auto state = detour.Find();
    if (!state.ok()) return state.error();
    if (state.value() != TapDetour::State::kAbsent) HF_TRY(RemoveFrom(detour));
  }
  return {};
}

Status Plug::RemoveFrom(TapDetour& detour) {
  const auto qdisc = FindQdisc(socket_, detour.ifb(), TC_H_ROOT);
  if (!qdisc.ok()) return qdisc.error();
  if (qdisc.value().has_value() && qdisc.value()->kind == kKind) {
    // Marked first: who finds it after a crash of ours must not hold again what already leaves.
    HF_TRY(detour.MarkOpening());
    HF_TRY(Execute(messages_.ChangePlug(detour.ifb(), PlugAction::kReleaseIndefinite),
                   "opening the plug qdisc of " + detour.tap()));
    // Before frames may take the short way again, or they would overtake.
    const auto drained = detour.Drained(kDrainMsMax);
    if (!drained.ok()) return drained.error();
  }
  HF_TRY(detour.StopDiverting());
  const auto drained = detour.Drained(kDrainMsMax);
  if (!drained.ok()) return drained.error();
  if (!drained.value()) {
    return Error::Of(ErrorCode::kSyscall,
                     "held frames of " + detour.tap() + " don't leave; they are kept");
  }
  return detour.Delete();
}

Result<PlugStats> Plug::Stats() {
  PlugStats total;
  for (TapDetour& detour : detours_) {
    const auto qdisc = FindQdisc(socket_, detour.ifb(), TC_H_ROOT);
    if (!qdisc.ok()) return qdisc.error();
    if (!qdisc.value().has_value() || qdisc.value()->kind != kKind) {
      return Error::Of(ErrorCode::kSyscall,
                       "the plug qdisc of " + detour.tap() + " is gone; somebody removed it");
    }
    total.held_frames += qdisc.value()->held_frames;
    total.held_bytes += qdisc.value()->held_bytes;
    total.dropped_frames += qdisc.value()->dropped_frames;
  }
  return total;
}

}  // namespace holdfast
