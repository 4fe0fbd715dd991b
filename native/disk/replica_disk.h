// One disk on the backup: image, journal, aside, and how far each of them is.
//
//   received ≥ checked ≥ committed ≥ durable ≥ applied ≥ synced ≥ freed        (LSNs)
//      │          │          │          │         │         │        └ in a slot: its room is free again
//      │          │          │          │         │         └ in the image on stable storage
//      │          │          │          │         └ written to the image
//      │          │          │          └ the slot says so, on stable storage
//      │          │          └ acknowledged
//      │          └ whole records, digests verified
//      └ in the journal's page cache
//
// Before a synchronisation's first commit there is nothing to keep: base and log
// go to the image at once, or aside where the image is a checkpoint.
//
// Decisions and work are apart: Plan… and Finish… are called under the owner's
// lock, Run… without it, each kind by one thread at a time. So a test can run
// them in every order, and stop anywhere.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "disk/aside.h"
#include "disk/disk_directory.h"
#include "disk/disk_file.h"
#include "disk/journal.h"

namespace holdfast {

class ReplicaDisk {
 public:
  // `image` and `directory` outlive it.
  ReplicaDisk(DiskDirectory& directory, DiskFile& image, std::unique_ptr<Journal> journal);

  Journal& journal() { return *journal_; }
  const Journal& journal() const { return *journal_; }

  // Makes image and journal what this slot says, which is one of the journal's
  // sound ones. May be repeated after a failure.
  Status Recover(const JournalSlot& slot, const std::atomic<bool>& stop);
  bool recovered() const { return recovered_; }  // there was something to do

  // --- rounds: what is committed becomes durable ---

  struct RoundPlan {
    JournalSlot slot;
    bool sync_image = false;  // first: the base copy was written to it
    bool freeze = false;      // the aside, first
  };
  // Is there something that should not wait; and is there anything at all?
  bool RoundIsDue() const;
  bool RoundIsOfUse() const;
  // Not while something is still being written aside that is to be frozen.
  bool RoundMayRun() const { return !(first_round_pending_ && applying_); }
  RoundPlan PlanRound() const;
  Status RunRound(const RoundPlan& plan);
  void FinishRound(const RoundPlan& plan);

  // --- applying ---

  struct ApplyPlan {
    enum class Kind { kNone, kRecords, kMerge, kForgetAside };
    Kind kind = Kind::kNone;
    bool to_aside = false;
    uint64_t from = 0;
    uint64_t to = 0;
    uint64_t done = 0;  // by Run: up to where
  };
  ApplyPlan PlanApply();
  Status RunApply(ApplyPlan& plan, const std::atomic<bool>& stop);
  void FinishApply(const ApplyPlan& plan, bool succeeded);

  // --- the image's own sync, beside both ---

  bool ImageSyncIsDue() const;    // room is wanted, or all that is left to do
  bool ImageSyncIsOfUse() const;  // something was applied since
  uint64_t PlanImageSync();
  Status RunImageSync();
  void FinishImageSync(uint64_t plan, bool succeeded);

  // --- a synchronisation, and the log behind it ---

  // Everything committed is in the image, on stable storage, and the journal says
  // so: another log may take the circle.
  bool drained() const;
  bool busy() const { return applying_ || syncing_; }
  bool has_checkpoint() const { return state_ == JournalState::kReplica || state_ == JournalState::kMerging; }

  // Drained. Not aside: the image is no checkpoint from the next round on, and
  // must not be written before.
  Status BeginStream(bool aside, uint64_t lsn);
  bool MayWriteImage() const;
  // What was not committed is gone.
  bool MayEndStream() const { return !BeforeFirstCommit() || !busy(); }
  void EndStream();

  // Of the base; without the lock.
  Status BaseData(uint64_t offset, std::span<const std::byte> bytes);
  Status BaseHole(uint64_t offset, uint64_t bytes);
  // What was written to this file is on its way to the disk, so that the first
  // commit need not wait for all of it at once. -1: aside, it is BaseData's.
  void BaseWritten(uint64_t offset, uint64_t bytes);
  int BaseFile() const { return aside_ != nullptr ? -1 : image_.fd(); }

  uint64_t received() const { return received_; }
  uint64_t checked() const { return checked_; }
  uint64_t used() const { return received_ - freed_; }
  uint64_t room() const { return journal_->circle_bytes() - used(); }
  // From here on the primary gets room back more and more slowly, and its guest
  // waits. So little that a `stop` cannot end is never reached, and a quarter stays
  // for what the primary's ring may hold already: the boundary is not stuck behind it.
  bool crowded() const { return used() > journal_->circle_bytes() / 8 * 5; }
  uint64_t RoomToGive(double elapsed_ms) const;
  // Will there be more room without anything more being received?
  bool RoomMayGrow() const;
  void Received(uint64_t bytes) { received_ += bytes; }
  // Verifies what has come; without the lock, by the thread that receives, which
  // alone changes `received` and `checked`. `visit`: each record's range, before
  // it counts. Returns the new `checked`.
  Result<uint64_t> CheckRecords(
      const std::function<void(uint64_t offset, uint64_t length)>& visit) const;
  void Checked(uint64_t lsn) { checked_ = lsn; }

  Status Synced(const SyncId& sync_id);
  // A commit of this stream is on stable storage.
  bool first_commit_durable() const { return stream_ == Stream::kLive && !first_round_pending_; }
  // All log below it has come, and been checked.
  Status Boundary(uint64_t lsn);
  // After Boundary.
  void Commit(uint64_t epoch);

  // --- what is where ---

  uint64_t epoch() const { return epoch_; }  // 0: no checkpoint
  uint64_t committed() const { return committed_; }
  uint64_t durable() const { return durable_; }
  uint64_t applied() const { return applied_; }
  bool merging() const { return state_ == JournalState::kMerging && !merged_; }
  bool AllApplied() const { return applied_ == committed_ && !merging(); }
  const JournalSlot& stable() const { return stable_; }
  // The image has become a running VM's, once a round has said so. All is applied.
  void Retire();
  // The journal is broken: what is committed is applied without it. Only at a
  // takeover, for there is no other way to it.
  void ForgoJournal() { forgone_ = true; }

 private:
  enum class Stream {
    kNone,
    kBase,    // the base copy is under way
    kSynced,  // it is complete, nothing is committed yet
    kLive,
  };
  // So much of the circle stays journal before the first commit, whatever comes:
  // the boundary's records are behind those of which it is told.
  uint64_t HeldBackBytes() const { return journal_->circle_bytes() / 2; }
  uint64_t ApplyLimit() const;
  bool BeforeFirstCommit() const { return stream_ == Stream::kBase || stream_ == Stream::kSynced; }
  Status ApplyRecord(const JournalRecord& record, bool to_aside);
  Status ApplyRecords(ApplyPlan& plan, const std::atomic<bool>& stop);
  void Save(uint64_t applied_bytes);
  void SetAll(uint64_t lsn);
  void Rewind();

  DiskDirectory& directory_;
  DiskFile& image_;
  const std::unique_ptr<Journal> journal_;
  std::unique_ptr<Aside> aside_;
  bool merged_ = false;        // the aside is in the image, though not yet for certain
  bool forget_aside_ = false;  // and now it is

  bool recovered_ = false;

  JournalSlot stable_;  // of the last complete round
  JournalState state_ = JournalState::kNone;
  SyncId sync_id_{};       // the checkpoint's
  SyncId next_sync_id_{};  // the stream's
  uint64_t epoch_ = 0;

  Stream stream_ = Stream::kNone;
  std::optional<uint64_t> boundary_;
  bool first_round_pending_ = false;  // of a stream whose first commit is not durable
  bool applying_ = false;
  bool syncing_ = false;
  bool rewind_ = false;   // a sync failed: what it was for is to be written once more
  bool forgone_ = false;  // applied without waiting for the journal
  uint64_t applying_to_ = 0;
  uint64_t unsaved_bytes_ = 0;  // applied since the image's writeback was last begun; of who applies
  // As in the picture above. Before a stream's first commit they are the
  // stream's, and `committed` to `freed` no part of any checkpoint.
  uint64_t received_ = 0;
  uint64_t checked_ = 0;
  uint64_t committed_ = 0;
  uint64_t durable_ = 0;
  uint64_t applied_ = 0;
  uint64_t synced_ = 0;
  uint64_t freed_ = 0;
};

}  // namespace holdfast
