#include "disk/replica_disk.h"

#include <algorithm>
#include <cinttypes>

#include "wire/text.h"

namespace holdfast {
namespace {

// Applied in one go, before the others have their turn.
constexpr uint64_t kApplyBytes = uint64_t{4} << 20;

// Read before it is looked at, small records many at a time. A large one's data is
// copied from file to file.
constexpr uint64_t kReadAheadBytes = uint64_t{64} << 10;
constexpr uint64_t kByKernelBytesMin = uint64_t{8} << 10;

// Applied, and not yet on its way to the disk: a sync of the image that finds more
// keeps the disk from everybody else, the journals' syncs among them. Less would
// write what the guest writes again and again each time.
constexpr uint64_t kUnsavedBytesMax = uint64_t{8} << 20;

// In which a crowded journal gives most of what it has left.
constexpr double kGiveMs = 1'000;

}  // namespace

ReplicaDisk::ReplicaDisk(DiskDirectory& directory, DiskFile& image,
                         std::unique_ptr<Journal> journal)
    : directory_(directory), image_(image), journal_(std::move(journal)) {}

Status ReplicaDisk::Recover(const JournalSlot& slot, const std::atomic<bool>& stop) {
  journal_->Choose(slot);
  stable_ = slot;
  state_ = slot.state;
  sync_id_ = slot.sync_id;
  epoch_ = has_checkpoint() ? slot.epoch : 0;
  if (state_ == JournalState::kMerging) {
    auto aside = Aside::Open(directory_, image_, slot.sync_id);
    if (!aside.ok()) return aside.error();
    aside_ = std::move(aside).value();
    HF_TRY(aside_->Merge(image_, stop));
  }
  ApplyPlan plan{.kind = ApplyPlan::Kind::kRecords,
                 .from = slot.applied_lsn,
                 .to = slot.committed_lsn,
                 .done = slot.applied_lsn};
  while (plan.done < plan.to) {
    plan.from = plan.done;
    HF_TRY(ApplyRecords(plan, stop));
    if (stop) return Error::Of(ErrorCode::kCancelled, "recovery: told to stop");
  }
  recovered_ = state_ == JournalState::kMerging || slot.applied_lsn < slot.committed_lsn;
  if (recovered_) HF_TRY(image_.Sync());
  if (state_ == JournalState::kMerging) {
    state_ = JournalState::kReplica;
    merged_ = true;
  }
  SetAll(slot.committed_lsn);
  return {};
}

void ReplicaDisk::SetAll(uint64_t lsn) {
  received_ = checked_ = committed_ = durable_ = applied_ = synced_ = freed_ = applying_to_ = lsn;
}

// --- rounds ---

bool ReplicaDisk::RoundIsDue() const {
  if (state_ != stable_.state) return true;
  if (BeforeFirstCommit()) return false;
  // Room is wanted, or nothing else is left to be done.
  const bool room = synced_ > freed_ && (crowded() || synced_ == committed_);
  return committed_ > durable_ || room;
}

bool ReplicaDisk::RoundIsOfUse() const {
  if (RoundIsDue()) return true;
  return !BeforeFirstCommit() && (synced_ > freed_ || epoch_ != stable_.epoch);
}

ReplicaDisk::RoundPlan ReplicaDisk::PlanRound() const {
  RoundPlan plan{.slot = {.round = 0,
                          .set_id = {},
                          .sync_id = sync_id_,
                          .state = state_,
                          .epoch = epoch_,
                          .applied_lsn = synced_,
                          .committed_lsn = committed_}};
  if (BeforeFirstCommit()) {
    // The log that comes is nobody's yet; of the one before nothing is left.
    plan.slot.applied_lsn = plan.slot.committed_lsn = stable_.committed_lsn;
  } else if (first_round_pending_) {
    plan.slot.applied_lsn = applied_;
    plan.sync_image = state_ == JournalState::kReplica;
    plan.freeze = state_ == JournalState::kMerging;
  }
  return plan;
}

Status ReplicaDisk::RunRound(const RoundPlan& plan) {
  if (plan.sync_image) HF_TRY(image_.Sync());
  // Nothing is written aside any more: the first boundary stopped that.
  if (plan.freeze) HF_TRY(aside_->Freeze(plan.slot.sync_id));
  return journal_->Commit(plan.slot);
}

void ReplicaDisk::FinishRound(const RoundPlan& plan) {
  stable_ = plan.slot;
  if (BeforeFirstCommit()) return;
  if (plan.sync_image || plan.freeze) {
    first_round_pending_ = false;
    synced_ = plan.slot.applied_lsn;
  }
  if (first_round_pending_) return;  // planned before the first commit
  durable_ = plan.slot.committed_lsn;
  freed_ = plan.slot.applied_lsn;
  if (aside_ != nullptr && merged_ && stable_.state == JournalState::kReplica) {
    forget_aside_ = true;
  }
}

// --- applying ---

uint64_t ReplicaDisk::ApplyLimit() const {
  switch (stream_) {
    case Stream::kBase: return checked_;
    case Stream::kSynced: {
      if (boundary_) return applied_;
      const uint64_t held_back = HeldBackBytes();
      return std::max(applied_, checked_ - std::min(held_back, checked_ - applied_));
    }
    case Stream::kNone:
    case Stream::kLive:
      if (forgone_) return committed_;
      return first_round_pending_ ? applied_ : durable_;
  }
  return applied_;
}

ReplicaDisk::ApplyPlan ReplicaDisk::PlanApply() {
  ApplyPlan plan;
  if (applying_) return plan;
  if (forget_aside_) {
    plan.kind = ApplyPlan::Kind::kForgetAside;
  } else if (!BeforeFirstCommit() && merging()) {
    // Only once the journal says so: a crash must find the rest of it.
    if (forgone_ || (stable_.state == JournalState::kMerging && !first_round_pending_)) {
      plan.kind = ApplyPlan::Kind::kMerge;
    }
  } else if (!BeforeFirstCommit() || MayWriteImage()) {
    plan.from = plan.done = applied_;
    plan.to = ApplyLimit();
    plan.to_aside = BeforeFirstCommit() && aside_ != nullptr;
    auto first = plan.from < plan.to ? journal_->RecordBytesAt(plan.from, plan.to)
                                     : Result<uint64_t>(uint64_t{0});
    // Not a whole record below the limit: nothing to do.
    if (!first.ok() || first.value() > 0) {
      if (plan.from < plan.to) plan.kind = ApplyPlan::Kind::kRecords;
    }
  }
  applying_ = plan.kind != ApplyPlan::Kind::kNone;
  if (plan.kind == ApplyPlan::Kind::kRecords) applying_to_ = plan.to;
  return plan;
}

Status ReplicaDisk::RunApply(ApplyPlan& plan, const std::atomic<bool>& stop) {
  switch (plan.kind) {
    case ApplyPlan::Kind::kNone: return {};
    case ApplyPlan::Kind::kRecords: return ApplyRecords(plan, stop);
    case ApplyPlan::Kind::kMerge: return aside_->Merge(image_, stop);
    case ApplyPlan::Kind::kForgetAside: Aside::Remove(directory_); return {};
  }
  return {};
}

void ReplicaDisk::FinishApply(const ApplyPlan& plan, bool succeeded) {
  applying_ = false;
  switch (plan.kind) {
    case ApplyPlan::Kind::kNone: return;
    case ApplyPlan::Kind::kRecords:
      applied_ = applying_to_ = plan.done;
      // Before the first commit nobody needs them once more.
      if (BeforeFirstCommit()) freed_ = synced_ = durable_ = committed_ = applied_;
      break;
    case ApplyPlan::Kind::kMerge: merged_ = succeeded; break;
    case ApplyPlan::Kind::kForgetAside:
      aside_.reset();
      merged_ = forget_aside_ = false;
      break;
  }
  if (rewind_) Rewind();
}

Status ReplicaDisk::ApplyRecords(ApplyPlan& plan, const std::atomic<bool>& stop) {
  const uint64_t turn_ends = plan.from + kApplyBytes;
  uint64_t readable = plan.done;
  const auto make_readable = [&](uint64_t end) -> Status {
    if (end <= readable) return {};
    end = std::min(plan.to, std::max(end, readable + kReadAheadBytes));
    HF_TRY(journal_->Readable(readable, end));
    readable = end;
    return {};
  };
  while (plan.done < plan.to && plan.done < turn_ends && !stop) {
    HF_TRY(make_readable(std::min(plan.to, plan.done + sizeof(RecordHeader))));
    auto bytes = journal_->RecordBytesAt(plan.done, plan.to);
    if (!bytes.ok()) return bytes.error();
    if (bytes.value() == 0) break;
    const uint64_t next = plan.done + bytes.value();
    const bool by_kernel = !plan.to_aside && bytes.value() >= kByKernelBytesMin;
    if (by_kernel) {
      readable = std::max(readable, next);  // nobody will look at it
    } else {
      HF_TRY(make_readable(next));
    }
    auto record = journal_->RecordAt(plan.done, false);
    if (!record.ok()) return record.error();
    const RecordHeader& header = record.value().header;
    HF_TRY(by_kernel ? journal_->CopyTo(image_, header.offset, plan.done + sizeof header, header.length)
                     : ApplyRecord(record.value(), plan.to_aside));
    plan.done = next;
  }
  if (!plan.to_aside) Save(plan.done - plan.from);
  return {};
}

void ReplicaDisk::Save(uint64_t applied_bytes) {
  unsaved_bytes_ += applied_bytes;
  if (unsaved_bytes_ < kUnsavedBytesMax) return;
  unsaved_bytes_ = 0;
  image_.StartWriteback(0, image_.bytes());
}

Status ReplicaDisk::ApplyRecord(const JournalRecord& record, bool to_aside) {
  const RecordHeader& header = record.header;
  if (header.kind == RecordKind::kWrite) {
    return to_aside ? aside_->Write(header.offset, record.data)
                    : image_.Write(header.offset, record.data);
  }
  const bool hole = header.kind == RecordKind::kTrim;
  return to_aside ? aside_->Zero(header.offset, header.length, hole)
                  : image_.Zero(header.offset, header.length, hole);
}

// --- the image's sync ---

bool ReplicaDisk::ImageSyncIsOfUse() const {
  if (syncing_ || rewind_ || BeforeFirstCommit() || first_round_pending_ || merging()) return false;
  return applied_ > synced_ || (merged_ && state_ == JournalState::kMerging);
}

bool ReplicaDisk::ImageSyncIsDue() const {
  if (!ImageSyncIsOfUse()) return false;
  return applied_ - synced_ > journal_->circle_bytes() / 4 || crowded() ||
         state_ == JournalState::kMerging || stream_ == Stream::kNone;
}

uint64_t ReplicaDisk::PlanImageSync() {
  syncing_ = true;
  return applied_;
}

Status ReplicaDisk::RunImageSync() { return image_.Sync(); }

void ReplicaDisk::FinishImageSync(uint64_t plan, bool succeeded) {
  syncing_ = false;
  if (!succeeded) {
    rewind_ = true;
    if (!applying_) Rewind();
    return;
  }
  synced_ = plan;
  if (merged_ && state_ == JournalState::kMerging) state_ = JournalState::kReplica;
}

// After a failed sync the kernel may take for clean what it has lost: everything
// since the last good one is written once more.
void ReplicaDisk::Rewind() {
  rewind_ = false;
  applied_ = applying_to_ = synced_;
  if (state_ == JournalState::kMerging) merged_ = false;
}

// --- the stream ---

bool ReplicaDisk::drained() const {
  return !busy() && !BeforeFirstCommit() && !first_round_pending_ && aside_ == nullptr &&
         state_ == stable_.state && freed_ == committed_;
}

Status ReplicaDisk::BeginStream(bool aside, uint64_t lsn) {
  HF_ASSERT(drained() && stream_ == Stream::kNone);
  if (aside) {
    auto created = Aside::Create(directory_, image_);
    if (!created.ok()) return created.error();
    aside_ = std::move(created).value();
    merged_ = false;
  } else {
    Aside::Remove(directory_);
    state_ = JournalState::kNone;
    epoch_ = 0;
  }
  stream_ = Stream::kBase;
  boundary_.reset();
  SetAll(lsn);
  return {};
}

bool ReplicaDisk::MayWriteImage() const {
  return aside_ != nullptr || stable_.state == JournalState::kNone;
}

void ReplicaDisk::EndStream() {
  HF_ASSERT(MayEndStream());
  boundary_.reset();
  if (BeforeFirstCommit()) {
    if (aside_ != nullptr) {
      aside_.reset();
      Aside::Remove(directory_);
    }
    SetAll(stable_.committed_lsn);
  } else {
    received_ = checked_ = committed_;
  }
  stream_ = Stream::kNone;
}

Status ReplicaDisk::BaseData(uint64_t offset, std::span<const std::byte> bytes) {
  HF_TRY(aside_ != nullptr ? aside_->Write(offset, bytes) : image_.Write(offset, bytes));
  BaseWritten(offset, bytes.size());
  return {};
}

void ReplicaDisk::BaseWritten(uint64_t offset, uint64_t bytes) {
  if (aside_ != nullptr) {
    aside_->StartWriteback(offset, bytes);
  } else {
    image_.StartWriteback(offset, bytes);
  }
}

Status ReplicaDisk::BaseHole(uint64_t offset, uint64_t bytes) {
  return aside_ != nullptr ? aside_->Zero(offset, bytes, true) : image_.Zero(offset, bytes, true);
}

uint64_t ReplicaDisk::RoomToGive(double elapsed_ms) const {
  if (!crowded()) return ~uint64_t{0};
  const uint64_t end = journal_->circle_bytes() / 4 * 3;
  if (used() >= end) return 0;
  const double share = std::min(1.0, elapsed_ms / kGiveMs);
  return static_cast<uint64_t>(static_cast<double>(end - used()) * share);
}

bool ReplicaDisk::RoomMayGrow() const {
  if (applying_ || boundary_) return true;
  if (BeforeFirstCommit()) {
    auto next = journal_->RecordBytesAt(applied_, ApplyLimit());
    return next.ok() && next.value() > 0;
  }
  return committed_ > freed_;
}

Result<uint64_t> ReplicaDisk::CheckRecords(
    const std::function<void(uint64_t offset, uint64_t length)>& visit) const {
  uint64_t at = checked_;
  while (at < received_) {
    auto bytes = journal_->RecordBytesAt(at, received_);
    if (!bytes.ok()) return bytes.error();
    if (bytes.value() == 0) break;
    auto record = journal_->RecordAt(at, true);
    if (!record.ok()) return record.error();
    visit(record.value().header.offset, record.value().header.length);
    at += bytes.value();
  }
  return at;
}

Status ReplicaDisk::Synced(const SyncId& sync_id) {
  if (stream_ != Stream::kBase) {
    return Error::Of(ErrorCode::kProtocol, "the base copy of a disk ends twice");
  }
  if (checked_ != received_) {
    return Error::Of(ErrorCode::kProtocol, "the base copy of a disk ends within a record of its log");
  }
  stream_ = Stream::kSynced;
  next_sync_id_ = sync_id;
  return {};
}

Status ReplicaDisk::Boundary(uint64_t lsn) {
  if (stream_ != Stream::kSynced && stream_ != Stream::kLive) {
    return Error::Of(ErrorCode::kProtocol, "an epoch's boundary before a disk's base copy is complete");
  }
  if (boundary_) return Error::Of(ErrorCode::kProtocol, "a disk has two boundaries at once");
  if (lsn < committed_) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("disk boundary %" PRIu64 " is before %" PRIu64, lsn, committed_));
  }
  if (lsn < applying_to_) {
    return Error::Of(ErrorCode::kLimit,
                     Text("half of the journal (%" PRIu64 " bytes) was written between the first "
                          "pause and its boundary; a larger one is needed",
                          HeldBackBytes()));
  }
  uint64_t at = committed_;
  while (at < lsn && at < checked_) {
    auto bytes = journal_->RecordBytesAt(at, checked_);
    if (!bytes.ok()) return bytes.error();
    at += bytes.value();
  }
  if (at != lsn) {
    return Error::Of(ErrorCode::kProtocol, Text("disk boundary %" PRIu64 " lies within a record", lsn));
  }
  boundary_ = lsn;
  return {};
}

void ReplicaDisk::Commit(uint64_t epoch) {
  HF_ASSERT(boundary_.has_value());
  if (stream_ == Stream::kSynced) {
    stream_ = Stream::kLive;
    first_round_pending_ = true;
    sync_id_ = next_sync_id_;
    state_ = aside_ != nullptr ? JournalState::kMerging : JournalState::kReplica;
  }
  committed_ = *boundary_;
  epoch_ = epoch;
  boundary_.reset();
}

void ReplicaDisk::Retire() {
  HF_ASSERT(AllApplied() && !first_round_pending_);
  state_ = JournalState::kRetired;
}

}  // namespace holdfast
