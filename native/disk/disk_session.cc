#include "disk/disk_session.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "base/clock.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr auto kRoomStep = std::chrono::milliseconds(50);
// A map's older window is forgotten no more often.
constexpr double kRotateMsMin = 1'000;

Error Superseded() {
  return Error::Of(ErrorCode::kFenced, "a newer session has taken the disks");
}

// Of this host's disk, and not of the connection.
bool IsDiskFault(const Status& written) {
  return !written.ok() && (written.error().code == ErrorCode::kSyscall ||
                           written.error().code == ErrorCode::kNoSpace);
}

std::vector<WireRun> MarksOf(const DiskMap& map) {
  std::vector<WireRun> marks;
  map.ForEachMarkedRun([&](uint64_t offset, uint64_t length) {
    marks.push_back({offset / kMapBlockBytes,
                     static_cast<uint32_t>((length + kMapBlockBytes - 1) / kMapBlockBytes)});
  });
  return marks;
}

}  // namespace

DiskSession::~DiskSession() {
  End();
  const Lock lock(store_->mutex_);
  if (store_->checkpoint_ == this) store_->checkpoint_ = nullptr;
  if (store_->fenced_ == this) store_->fenced_ = nullptr;
  store_->changed_.notify_all();
}

std::vector<uint64_t> DiskSession::image_bytes() const {
  std::vector<uint64_t> bytes;
  for (const auto& disk : store_->disks_) bytes.push_back(disk.image_bytes);
  return bytes;
}

Status DiskSession::CheckLocked() const {
  if (store_->state_ != DiskStore::State::kOpen) {
    return Error::Of(ErrorCode::kCancelled, "the disks are closed");
  }
  if (store_->streaming_ != this || *cut_) return Superseded();
  if (const auto fault = store_->FaultLocked()) return *fault;
  return {};
}

// --- the stream ---

Result<DiskSession::Begun> DiskSession::Begin(std::shared_ptr<std::atomic<bool>> cut) {
  Lock lock(store_->mutex_);
  const auto open = [this] { return store_->state_ == DiskStore::State::kOpen; };
  if (!open()) return Error::Of(ErrorCode::kCancelled, "the disks are closed");
  store_->RetryLocked();
  if (store_->streaming_ != nullptr) {
    *store_->streaming_->cut_ = true;
    store_->changed_.notify_all();
  }
  while (store_->streaming_ != nullptr) {
    if (*cut || !open()) return Superseded();
    store_->changed_.wait_for(lock, kRoomStep);
  }
  store_->streaming_ = this;
  cut_ = std::move(cut);
  begun_ = false;
  boundary_epoch_ = 0;
  HF_TRY(CheckLocked());
  Begun begun;
  for (size_t i = 0; i < size(); i++) {
    const DiskStore::OpenDisk& disk = *store_->open_[i];
    const bool trusted = disk.map->trusted() && !disk.map->fault();
    auto marks = trusted ? MarksOf(*disk.map) : std::vector<WireRun>{};
    uint64_t blocks = 0;
    for (const WireRun& run : marks) blocks += run.pages;
    begun.states.push_back({.id = store_->disks_[i].id,
                            .image_bytes = store_->disks_[i].image_bytes,
                            .sync_id = disk.map->sync_id(),
                            .trusted = trusted,
                            .fresh = disk.fresh,
                            .marked_blocks = blocks});
    begun.marks.push_back(std::move(marks));
  }
  return begun;
}

Status DiskSession::Await(Lock& lock, const std::function<bool()>& condition,
                          const std::function<Status()>& idle) {
  for (;;) {
    HF_TRY(CheckLocked());
    if (condition()) return {};
    store_->changed_.wait_for(lock, kRoomStep);
    lock.unlock();
    HF_TRY(idle());
    lock.lock();
  }
}

Status DiskSession::Start(std::span<const DiskPlan> plans, const std::function<Status()>& idle) {
  Lock lock(store_->mutex_);
  HF_TRY(CheckLocked());
  DiskSet& set = *store_->set_;
  HF_TRY(Await(lock, [this] { return store_->DrainedLocked(); }, idle));
  // Where little comes, the image stays whole even for a host that has no memory
  // to go with it any more.
  const bool changes_only = std::all_of(plans.begin(), plans.end(), [](const DiskPlan& plan) {
    return plan.what == DiskPlan::What::kChanged;
  });
  const bool have_all = std::all_of(set.begin(), set.end(),
                                    [](const auto& disk) { return disk->has_checkpoint(); });
  const bool aside = have_all && (store_->checkpoint_ != nullptr || changes_only);
  begun_ = true;
  for (size_t i = 0; i < size(); i++) {
    const Status begun = set[i].BeginStream(aside, plans[i].lsn);
    if (!begun.ok()) {
      store_->Fail(i, begun.error());
      return begun.error();
    }
    store_->open_[i]->window_lsn.reset();
    if (!aside) store_->open_[i]->fresh = false;
  }
  store_->changed_.notify_all();
  HF_TRY(Await(
      lock,
      [&set] {
        return std::all_of(set.begin(), set.end(), [](const auto& disk) { return disk->MayWriteImage(); });
      },
      idle));
  if (aside) return {};
  // Not before the journals have said that there is no checkpoint: until then a
  // round may put the old id back.
  lock.unlock();
  return ForgetSyncIds(plans);
}

// A copy of everything that ends halfway leaves an image that differs from every
// state that has a name, and no mark tells where.
Status DiskSession::ForgetSyncIds(std::span<const DiskPlan> plans) {
  for (size_t i = 0; i < size(); i++) {
    DiskMap& map = *store_->open_[i]->map;
    if (plans[i].what != DiskPlan::What::kAll || map.sync_id() == SyncId{}) continue;
    const Status forgotten = map.SetSyncId({});
    if (forgotten.ok()) continue;
    const Lock lock(store_->mutex_);
    store_->Fail(i, forgotten.error());
    return forgotten;
  }
  return {};
}

int DiskSession::BaseFile(uint32_t disk) const { return (*store_->set_)[disk].BaseFile(); }

Status DiskSession::BaseWritten(uint32_t disk, const Status& written, uint64_t offset,
                                uint64_t bytes) {
  if (written.ok()) (*store_->set_)[disk].BaseWritten(offset, bytes);
  return Account(disk, written, bytes);
}

Status DiskSession::Account(uint32_t disk, const Status& written, uint64_t bytes) {
  const Lock lock(store_->mutex_);
  if (IsDiskFault(written)) store_->Fail(disk, written.error());
  if (!written.ok()) return written;
  store_->open_[disk]->base_bytes += bytes;
  return CheckLocked();
}

Status DiskSession::BaseData(uint32_t disk, uint64_t offset, std::span<const std::byte> bytes) {
  return Account(disk, (*store_->set_)[disk].BaseData(offset, bytes), bytes.size());
}

Status DiskSession::BaseHole(uint32_t disk, uint64_t offset, uint64_t bytes) {
  return Account(disk, (*store_->set_)[disk].BaseHole(offset, bytes), 0);
}

Result<DiskSession::Room> DiskSession::AwaitRoom(uint32_t disk, uint64_t bytes_max,
                                                 const std::function<Status()>& idle) {
  Lock lock(store_->mutex_);
  ReplicaDisk& replica = (*store_->set_)[disk];
  for (;;) {
    HF_TRY(CheckLocked());
    const uint64_t room = replica.room();
    if (room > 0) {
      Journal& journal = replica.journal();
      const uint64_t at = replica.received();
      return Room{journal.file().fd(), journal.OffsetOf(at),
                  std::min({bytes_max, room, journal.InOnePiece(at)})};
    }
    if (!replica.RoomMayGrow()) {
      return Error::Of(ErrorCode::kLimit,
                       Text("disk %s: its journal (%llu bytes) is full of one epoch. A larger "
                            "journal, or shorter epochs, take more",
                            store_->disks_[disk].id.c_str(),
                            static_cast<unsigned long long>(replica.journal().circle_bytes())));
    }
    store_->changed_.notify_all();  // room is wanted now
    store_->changed_.wait_for(lock, kRoomStep);
    lock.unlock();
    HF_TRY(idle());
    lock.lock();
  }
}

Status DiskSession::LogWritten(uint32_t disk, const Status& written) {
  if (!IsDiskFault(written)) return written;
  const Lock lock(store_->mutex_);
  store_->Fail(disk, written.error());
  return written;
}

Status DiskSession::Took(uint32_t disk, uint64_t bytes) {
  ReplicaDisk& replica = (*store_->set_)[disk];
  DiskStore::OpenDisk& open = *store_->open_[disk];
  {
    const Lock lock(store_->mutex_);
    HF_TRY(CheckLocked());
    replica.Received(bytes);
    open.received_bytes += bytes;
  }
  // Marked before it can be committed: a daemon that is killed may leave a journal
  // that has it not, while the primary takes it for acknowledged.
  auto checked = replica.CheckRecords(
      [&open](uint64_t offset, uint64_t length) { open.map->Mark(offset, length); });
  if (!checked.ok()) return checked.error();
  bool rotate = false;
  {
    const Lock lock(store_->mutex_);
    replica.Checked(checked.value());
    const double now_ms = MonotonicMs();
    const bool durable = !open.window_lsn || replica.durable() >= *open.window_lsn;
    rotate = replica.first_commit_durable() && durable && now_ms - open.rotated_ms >= kRotateMsMin;
    if (rotate) {
      open.rotated_ms = now_ms;
      open.window_lsn = checked.value();
    }
    store_->changed_.notify_all();
  }
  if (rotate) open.map->Rotate();
  return {};
}

uint64_t DiskSession::RoomToGive(uint32_t disk, double elapsed_ms) const {
  const Lock lock(store_->mutex_);
  if (store_->state_ != DiskStore::State::kOpen) return 0;
  return (*store_->set_)[disk].RoomToGive(elapsed_ms);
}

Status DiskSession::Synced(const SyncId& sync_id) {
  const Lock lock(store_->mutex_);
  HF_TRY(CheckLocked());
  for (const auto& disk : *store_->set_) HF_TRY(disk->Synced(sync_id));
  store_->changed_.notify_all();
  return {};
}

Status DiskSession::Boundary(uint64_t epoch, std::span<const uint64_t> lsns) {
  const Lock lock(store_->mutex_);
  HF_TRY(CheckLocked());
  for (size_t i = 0; i < size(); i++) HF_TRY((*store_->set_)[i].Boundary(lsns[i]));
  boundary_epoch_ = epoch;
  return {};
}

void DiskSession::End() {
  Lock lock(store_->mutex_);
  if (store_->streaming_ != this) return;
  if (begun_) {
    DiskSet& set = *store_->set_;
    store_->ending_++;
    store_->changed_.wait(lock, [&set] {
      return std::all_of(set.begin(), set.end(), [](const auto& disk) { return disk->MayEndStream(); });
    });
    store_->ending_--;
    for (const auto& disk : set) disk->EndStream();
  }
  begun_ = false;
  boundary_epoch_ = 0;
  store_->streaming_ = nullptr;
  store_->changed_.notify_all();
}

// --- the session ---

bool DiskSession::Reached(uint64_t epoch) const {
  const Lock lock(store_->mutex_);
  return boundary_epoch_ == epoch;
}

Status DiskSession::Commit(uint64_t epoch) {
  const Lock lock(store_->mutex_);
  HF_TRY(CheckLocked());
  HF_ASSERT(boundary_epoch_ == epoch);
  for (const auto& disk : *store_->set_) disk->Commit(epoch);
  boundary_epoch_ = 0;
  committed_ = true;
  store_->checkpoint_ = this;
  store_->fenced_ = nullptr;  // an older session's fence, whose checkpoint is void now
  store_->CommittedLocked(epoch);
  store_->changed_.notify_all();
  return {};
}

Status DiskSession::Fence() {
  const Lock lock(store_->mutex_);
  if (!committed_) return {};
  if (store_->checkpoint_ != this) {
    return Error::Of(ErrorCode::kFenced,
                     "this checkpoint is void: a newer session has committed to the same disks");
  }
  store_->fenced_ = this;
  if (store_->streaming_ != nullptr) *store_->streaming_->cut_ = true;
  store_->RetryLocked();
  return {};
}

Status DiskSession::AwaitApplied(const std::function<bool()>& cancelled) {
  Lock lock(store_->mutex_);
  if (store_->fenced_ != this || store_->HasRetiredLocked()) return {};
  return store_->AwaitAppliedLocked(
      lock, [&] { return cancelled() || store_->state_ != DiskStore::State::kOpen; });
}

}  // namespace holdfast
