// The store's threads, its end, and what sessions ask of it together. Opening is
// in store_open.cc.

#include "disk/store.h"

#include <algorithm>
#include <chrono>

#include "base/clock.h"
#include "disk/disk_session.h"

namespace holdfast {
namespace {

// What is of use, but of no hurry: a sync of the image, a slot with its result.
constexpr auto kLazy = std::chrono::seconds(1);
// Epochs of which it is told one by one that they were applied.
constexpr size_t kApplyingMax = 1024;

}  // namespace

std::shared_ptr<DiskStore> DiskStore::Create(std::vector<Disk> disks, EventSink sink) {
  return std::shared_ptr<DiskStore>(new DiskStore(std::move(disks), std::move(sink)));
}

DiskStore::DiskStore(std::vector<Disk> disks, EventSink sink)
    : disks_(std::move(disks)), sink_(std::move(sink)) {}

DiskStore::~DiskStore() { StopThreads(); }

std::unique_ptr<DiskSession> DiskStore::NewSession() {
  return std::make_unique<DiskSession>(shared_from_this());
}

void DiskStore::Start() {
  stop_ = false;
  told_durable_ = (*set_)[0].epoch();
  durable_thread_ = Thread("hf-disk-durable", [this] { DurableLoop(); });
  apply_thread_ = Thread("hf-disk-apply", [this] { ApplyLoop(); });
  sync_thread_ = Thread("hf-disk-sync", [this] { SyncLoop(); });
}

void DiskStore::StopThreads() {
  {
    const Lock lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  durable_thread_.Join();
  apply_thread_.Join();
  sync_thread_.Join();
}

// --- threads ---

void DiskStore::DurableLoop() {
  Lock lock(mutex_);
  const auto due = [this] {
    return stop_ || (!journal_fault_ && set_->RoundMayRun() && set_->RoundIsDue());
  };
  while (!stop_) {
    changed_.wait_for(lock, kLazy, due);
    if (stop_) return;
    if (journal_fault_ || !set_->RoundMayRun() || !set_->RoundIsOfUse()) continue;
    const DiskSet::Round round = set_->PlanRound();
    lock.unlock();
    size_t failed = 0;
    const Status done = set_->RunRound(round, &failed);
    lock.lock();
    if (!done.ok()) {
      // Which disks have this round is not known: no other may follow.
      journal_fault_ = done.error();
      sink_({.type = Event::Type::kFault, .id = disks_[failed].id, .error = done.error()});
    } else {
      set_->FinishRound(round);
      RoundDone(lock, round.epoch);
    }
    changed_.notify_all();
  }
}

void DiskStore::RoundDone(Lock& lock, uint64_t epoch) {
  for (size_t i = 0; i < open_.size(); i++) {
    const ReplicaDisk& disk = (*set_)[i];
    const SyncId sync_id = disk.stable().sync_id;
    const bool checkpoint = disk.stable().state == JournalState::kReplica ||
                            disk.stable().state == JournalState::kMerging;
    if (!checkpoint || open_[i]->map->sync_id() == sync_id) continue;
    lock.unlock();
    const Status set = open_[i]->map->SetSyncId(sync_id);
    lock.lock();
    // The next synchronisation sends more than it need, then.
    if (!set.ok()) sink_({.type = Event::Type::kFault, .id = disks_[i].id, .error = set.error()});
  }
  if (epoch <= told_durable_) return;
  told_durable_ = epoch;
  sink_({.type = Event::Type::kDurable, .epoch = epoch});
}

void DiskStore::ApplyLoop() {
  Lock lock(mutex_);
  while (!stop_) {
    bool worked = false;
    for (size_t i = 0; i < open_.size() && !stop_; i++) worked = ApplyOne(lock, i) || worked;
    if (worked) {
      TellApplied();
      changed_.notify_all();
    } else if (!stop_) {
      changed_.wait(lock);
    }
  }
}

bool DiskStore::ApplyOne(Lock& lock, size_t index) {
  using Kind = ReplicaDisk::ApplyPlan::Kind;
  OpenDisk& open = *open_[index];
  ReplicaDisk& disk = (*set_)[index];
  if (open.apply_fault || ending_ > 0) return false;
  auto plan = disk.PlanApply();
  if (plan.kind == Kind::kNone) return false;
  lock.unlock();
  const Status applied = disk.RunApply(plan, stop_);
  lock.lock();
  disk.FinishApply(plan, applied.ok());
  if (plan.kind == Kind::kRecords) open.applied_bytes += plan.done - plan.from;
  if (!applied.ok()) {
    if (!stop_) Fail(index, applied.error());
  } else if (plan.kind == Kind::kMerge) {
    const bool all = std::none_of(set_->begin(), set_->end(),
                                  [](const auto& each) { return each->merging(); });
    if (all) sink_({.type = Event::Type::kMerged, .epoch = disk.epoch()});
  }
  return true;
}

void DiskStore::TellApplied() {
  uint64_t epoch = 0;
  while (!applying_.empty()) {
    const Applying& next = applying_.front();
    for (size_t i = 0; i < open_.size(); i++) {
      if ((*set_)[i].merging() || (*set_)[i].applied() < next.lsns[i]) {
        if (epoch > 0) sink_({.type = Event::Type::kApplied, .epoch = epoch});
        return;
      }
    }
    epoch = next.epoch;
    applying_.pop_front();
  }
  if (epoch > 0) sink_({.type = Event::Type::kApplied, .epoch = epoch});
}

void DiskStore::CommittedLocked(uint64_t epoch) {
  if (applying_.size() >= kApplyingMax) applying_.pop_back();
  Applying& last = applying_.emplace_back();
  last.epoch = epoch;
  for (const auto& disk : *set_) last.lsns.push_back(disk->committed());
  TellApplied();
}

void DiskStore::SyncLoop() {
  Lock lock(mutex_);
  const auto due = [this] {
    if (stop_) return true;
    for (size_t i = 0; i < open_.size(); i++) {
      if (!open_[i]->apply_fault && (*set_)[i].ImageSyncIsDue()) return true;
    }
    return false;
  };
  while (!stop_) {
    changed_.wait_for(lock, kLazy, due);
    for (size_t i = 0; i < open_.size() && !stop_; i++) {
      ReplicaDisk& disk = (*set_)[i];
      if (open_[i]->apply_fault || !disk.ImageSyncIsOfUse()) continue;
      const uint64_t plan = disk.PlanImageSync();
      lock.unlock();
      const Status synced = disk.RunImageSync();
      lock.lock();
      disk.FinishImageSync(plan, synced.ok());
      if (!synced.ok()) Fail(i, synced.error());
      changed_.notify_all();
    }
  }
}

// --- faults ---

void DiskStore::Fail(size_t index, const Error& error) {
  if (!open_[index]->apply_fault) {
    sink_({.type = Event::Type::kFault, .id = disks_[index].id, .error = error});
  }
  open_[index]->apply_fault = error;
  changed_.notify_all();
}

std::optional<Error> DiskStore::FaultLocked() const {
  for (const auto& disk : open_) {
    if (disk->apply_fault) return disk->apply_fault;
  }
  return journal_fault_;
}

void DiskStore::RetryLocked() {
  for (const auto& disk : open_) disk->apply_fault.reset();
  changed_.notify_all();
}

bool DiskStore::DrainedLocked() const {
  return std::all_of(set_->begin(), set_->end(), [](const auto& disk) { return disk->drained(); });
}

Status DiskStore::AwaitLocked(Lock& lock, const std::function<bool()>& condition,
                              const std::function<bool()>& cancelled) {
  for (;;) {
    if (cancelled()) return Error::Of(ErrorCode::kCancelled, "disks: told to stop waiting");
    if (condition()) return {};
    if (const auto fault = FaultLocked()) return *fault;
    // In steps: `cancelled` may look at what nobody notifies of.
    changed_.wait_for(lock, std::chrono::milliseconds(100));
  }
}

// --- the end ---

void DiskStore::EndStreamsLocked() {
  closing_ = true;
  if (streaming_ != nullptr) *streaming_->cut_ = true;
  changed_.notify_all();
}

// All of it is in the images. With a broken journal there is one thing left that
// must not happen: that it is found, and its older slot applied to newer contents.
Status DiskStore::RemoveJournals(Lock& lock) {
  removing_ = true;
  lock.unlock();
  Status removed;
  for (size_t i = 0; i < open_.size() && removed.ok(); i++) {
    removed = open_[i]->image->Sync();
    if (!removed.ok()) break;
    open_[i]->directory.Remove("journal");
    removed = open_[i]->directory.Sync();
  }
  lock.lock();
  removing_ = false;
  changed_.notify_all();
  return removed;
}

Status DiskStore::AwaitAppliedLocked(Lock& lock, const std::function<bool()>& cancelled) {
  const auto applied = [this] {
    return streaming_ == nullptr && !removing_ &&
           std::all_of(set_->begin(), set_->end(), [](const auto& disk) { return disk->AllApplied(); });
  };
  for (;;) {
    if (cancelled()) return Error::Of(ErrorCode::kCancelled, "disks: told to stop waiting");
    if (applied()) return journal_fault_ ? RemoveJournals(lock) : Status();
    for (const auto& disk : open_) {
      if (disk->apply_fault) return *disk->apply_fault;
    }
    if (journal_fault_) {
      for (const auto& disk : *set_) disk->ForgoJournal();
      changed_.notify_all();
    }
    changed_.wait_for(lock, std::chrono::milliseconds(100));
  }
}

void DiskStore::Cancel() {
  cancelled_ = true;
  changed_.notify_all();
}

Status DiskStore::Retire() {
  Lock lock(mutex_);
  if (state_ == State::kRetired) return {};
  if (state_ != State::kRetiring) HF_TRY(RetireJournals(lock));
  lock.unlock();
  const Status closed = CloseMaps();
  if (closed.ok()) Release();
  lock.lock();
  if (closed.ok()) state_ = State::kRetired;
  changed_.notify_all();
  return closed;
}

Status DiskStore::RetireJournals(Lock& lock) {
  if (state_ != State::kOpen) return Error::Of(ErrorCode::kDisk, "disks: not open");
  EndStreamsLocked();
  RetryLocked();
  const auto closed = [this] { return state_ != State::kOpen || cancelled_; };
  Status retired;
  if (!journal_fault_) {
    retired = AwaitLocked(lock, [this] { return streaming_ == nullptr && DrainedLocked(); }, closed);
    if (retired.ok()) {
      for (const auto& disk : *set_) disk->Retire();
      changed_.notify_all();
      retired = AwaitLocked(lock, [this] { return DrainedLocked(); }, closed);
    }
  }
  if (journal_fault_) retired = AwaitAppliedLocked(lock, closed);
  if (!retired.ok()) {
    closing_ = false;
    return retired;
  }
  state_ = State::kRetiring;
  lock.unlock();
  StopThreads();
  lock.lock();
  // Whatever else differs, the other host has marked. A journal that had retired
  // before has no epoch, and its map the marks of the VM that has run since.
  for (size_t i = 0; i < open_.size(); i++) {
    if ((*set_)[i].epoch() > 0) open_[i]->map->Clear();
  }
  return {};
}

// The threads are joined.
Status DiskStore::CloseMaps() {
  Status closed;
  for (const auto& disk : open_) {
    if (!disk->map) continue;  // by an attempt before
    const Status one = disk->map->Close();
    if (one.ok()) {
      disk->map.reset();
    } else if (closed.ok()) {
      closed = one;
    }
  }
  return closed;
}

Status DiskStore::Close() {
  {
    Lock lock(mutex_);
    if (state_ == State::kRetiring) {  // a map stays open, as of a process that died
      Release();
      state_ = State::kClosed;
    }
    if (state_ != State::kOpen) return {};
    EndStreamsLocked();
    changed_.wait(lock, [this] { return streaming_ == nullptr && !removing_; });
    RetryLocked();
    // What cannot be made durable any more is in the journal, or marked in the map.
    (void)AwaitLocked(lock, [this] { return DrainedLocked(); }, [] { return false; });
    state_ = State::kBusy;
  }
  StopThreads();
  const Status closed = CloseMaps();
  Release();
  const Lock lock(mutex_);
  state_ = State::kClosed;
  changed_.notify_all();
  return closed;
}

std::vector<DiskStore::Stats> DiskStore::stats() {
  const Lock lock(mutex_);
  std::vector<Stats> all;
  if (state_ != State::kOpen) return all;
  for (size_t i = 0; i < open_.size(); i++) {
    const OpenDisk& open = *open_[i];
    const ReplicaDisk& disk = (*set_)[i];
    all.push_back({.id = disks_[i].id,
                   .journal_bytes = disk.journal().circle_bytes(),
                   .journal_used_bytes = disk.used(),
                   .received_bytes = open.received_bytes,
                   .base_bytes = open.base_bytes,
                   .applied_bytes = open.applied_bytes,
                   .committed_epoch = disk.epoch(),
                   .durable_epoch = disk.stable().state == JournalState::kNone ? 0 : disk.stable().epoch,
                   .merging = disk.merging()});
  }
  return all;
}

}  // namespace holdfast
