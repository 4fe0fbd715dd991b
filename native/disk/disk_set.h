// The disks of a VM, in step: what a crash leaves of them is one epoch.
//
// Rounds make committed epochs durable: each disk syncs its journal with a slot of
// the same number, and nothing of a round is applied, and no room given back,
// before all have. So their slots are at most one round apart, and each has the
// last two: the recovery takes the latest that all of them have.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "disk/replica_disk.h"

namespace holdfast {

class DiskSet {
 public:
  explicit DiskSet(std::vector<std::unique_ptr<ReplicaDisk>> disks) : disks_(std::move(disks)) {}

  size_t size() const { return disks_.size(); }
  ReplicaDisk& operator[](size_t index) { return *disks_[index]; }
  const ReplicaDisk& operator[](size_t index) const { return *disks_[index]; }
  auto begin() const { return disks_.begin(); }
  auto end() const { return disks_.end(); }

  // What the disks were, and the round that says so anew. May be repeated.
  Status Recover(const std::atomic<bool>& stop);

  struct Round {
    std::vector<ReplicaDisk::RoundPlan> plans;
    uint64_t epoch = 0;
  };
  bool RoundIsDue() const;
  bool RoundIsOfUse() const;
  bool RoundMayRun() const;
  Round PlanRound() const;
  // After a failure of one of them no other round may be begun: which disks have
  // this one is not known.
  // `failed`: the disk whose error it is.
  Status RunRound(const Round& round, size_t* failed = nullptr);
  void FinishRound(const Round& round);

 private:
  std::vector<JournalSlot> ChooseSlots() const;

  const std::vector<std::unique_ptr<ReplicaDisk>> disks_;
  SetId set_id_{};
  uint64_t round_ = 0;  // the last one that was complete
};

}  // namespace holdfast
