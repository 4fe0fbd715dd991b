#include "disk/disk_set.h"

#include <sys/random.h>

#include <algorithm>
#include <span>

namespace holdfast {
namespace {

SetId RandomSetId() {
  SetId id;
  HF_ASSERT(::getrandom(id.data(), id.size(), 0) == static_cast<ssize_t>(id.size()));
  return id;
}

bool Same(const JournalSlot& a, const JournalSlot& b) {
  return a.round == b.round && a.set_id == b.set_id;
}

}  // namespace

// The latest round that every journal has. Disks that never were in step have
// none: each is then what it says itself.
std::vector<JournalSlot> DiskSet::ChooseSlots() const {
  std::vector<JournalSlot> latest;
  for (const auto& disk : disks_) latest.push_back(disk->journal().SoundSlots().front());
  for (const JournalSlot& candidate : disks_.front()->journal().SoundSlots()) {
    std::vector<JournalSlot> common;
    for (const auto& disk : disks_) {
      for (const JournalSlot& slot : disk->journal().SoundSlots()) {
        if (Same(slot, candidate)) common.push_back(slot);
      }
    }
    if (common.size() == disks_.size()) return common;
  }
  return latest;
}

Status DiskSet::Recover(const std::atomic<bool>& stop) {
  HF_ASSERT(!disks_.empty());
  const std::vector<JournalSlot> chosen = ChooseSlots();
  // New each time: a disk that was away must not be taken for one that was in step.
  set_id_ = RandomSetId();
  // A process that was killed may have left slots that are in memory only, and
  // what is applied now must be what a power failure leaves as well.
  for (const auto& disk : disks_) HF_TRY(disk->journal().file().Sync());
  round_ = 0;
  for (size_t i = 0; i < disks_.size(); i++) {
    HF_TRY(disks_[i]->Recover(chosen[i], stop));
    // Beyond every number that a slot of theirs has, also one that was not chosen.
    round_ = std::max(round_, disks_[i]->journal().SoundSlots().front().round);
  }
  const Round round = PlanRound();
  HF_TRY(RunRound(round));
  FinishRound(round);
  return {};
}

bool DiskSet::RoundIsDue() const {
  return std::any_of(disks_.begin(), disks_.end(), [](const auto& d) { return d->RoundIsDue(); });
}

bool DiskSet::RoundIsOfUse() const {
  return std::any_of(disks_.begin(), disks_.end(), [](const auto& d) { return d->RoundIsOfUse(); });
}

bool DiskSet::RoundMayRun() const {
  return std::all_of(disks_.begin(), disks_.end(), [](const auto& d) { return d->RoundMayRun(); });
}

DiskSet::Round DiskSet::PlanRound() const {
  Round round;
  for (const auto& disk : disks_) {
    round.plans.push_back(disk->PlanRound());
    round.plans.back().slot.round = round_ + 1;
    round.plans.back().slot.set_id = set_id_;
    round.epoch = std::max(round.epoch, disk->epoch());
  }
  return round;
}

Status DiskSet::RunRound(const Round& round, size_t* failed) {
  for (size_t i = 0; i < disks_.size(); i++) {
    if (failed != nullptr) *failed = i;
    HF_TRY(disks_[i]->RunRound(round.plans[i]));
  }
  return {};
}

void DiskSet::FinishRound(const Round& round) {
  round_ = round.plans.front().slot.round;
  for (size_t i = 0; i < disks_.size(); i++) disks_[i]->FinishRound(round.plans[i]);
}

}  // namespace holdfast
