// A session's hold on the disks: one replica of RAM, and the disks that belong to
// it. Streams one log after the other into the store, commits, is fenced.
//
// Stream calls are made by one thread, from Begin to End. Commit, Fence and
// AwaitApplied are the session's, which holds its own mutex in the first two.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "disk/store.h"
#include "wire/disk_frame.h"
#include "wire/run_table.h"

namespace holdfast {

class DiskSession {
 public:
  explicit DiskSession(std::shared_ptr<DiskStore> store) : store_(std::move(store)) {}
  DiskSession(const DiskSession&) = delete;
  DiskSession& operator=(const DiskSession&) = delete;
  // Its checkpoint is gone with it.
  ~DiskSession();

  size_t size() const { return store_->size(); }
  std::vector<uint64_t> image_bytes() const;

  // --- the stream ---

  struct Begun {
    std::vector<DiskState> states;
    std::vector<std::vector<WireRun>> marks;  // by disk: runs of blocks
  };
  // Takes the log, from whoever has it. `cut` becomes true when somebody else
  // takes it from here, and ends every call that waits.
  Result<Begun> Begin(std::shared_ptr<std::atomic<bool>> cut);
  // Waits until nothing of an older log is left to be applied, calling `idle` now
  // and then.
  Status Start(std::span<const DiskPlan> plans, const std::function<Status()>& idle);
  Status BaseData(uint32_t disk, uint64_t offset, std::span<const std::byte> bytes);
  Status BaseHole(uint32_t disk, uint64_t offset, uint64_t bytes);
  // The file that data of the base goes to as it is; -1: there is none. And how
  // writing to it went.
  int BaseFile(uint32_t disk) const;
  Status BaseWritten(uint32_t disk, const Status& written, uint64_t offset, uint64_t bytes);

  // Where the next log bytes go: so many of them, in one piece of this file.
  struct Room {
    int file = -1;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  // Waits for room, calling `idle` now and then. kLimit where there will be none.
  Result<Room> AwaitRoom(uint32_t disk, uint64_t bytes_max, const std::function<Status()>& idle);
  // How writing there went.
  Status LogWritten(uint32_t disk, const Status& written);
  // They are there: whole records are verified, and marked in the map.
  Status Took(uint32_t disk, uint64_t bytes);

  // How much room the primary's ring may be given back, so long after the last
  // time. Where it is little an epoch is being written faster than it can be taken,
  // and the guest is to wait.
  uint64_t RoomToGive(uint32_t disk, double elapsed_ms) const;

  Status Synced(const SyncId& sync_id);
  Status Boundary(uint64_t epoch, std::span<const uint64_t> lsns);
  // What is not committed is dropped. Any number of times.
  void End();

  // --- the session ---

  // Has every disk's log come up to the boundary of this epoch?
  bool Reached(uint64_t epoch) const;
  // It is the checkpoint now; no other session's is.
  Status Commit(uint64_t epoch);
  // A log that is being received is dropped. A session that begins after this may
  // still commit, and make this one's checkpoint void: whoever takes over lets none
  // begin. Does not wait. kFenced: a newer session has committed.
  Status Fence();
  // After Fence: everything committed is in the images.
  Status AwaitApplied(const std::function<bool()>& cancelled);

 private:
  friend class DiskStore;
  using Lock = DiskStore::Lock;
  Status CheckLocked() const;
  Status ForgetSyncIds(std::span<const DiskPlan> plans);
  Status Account(uint32_t disk, const Status& written, uint64_t bytes);
  Status Await(Lock& lock, const std::function<bool()>& condition,
               const std::function<Status()>& idle);

  const std::shared_ptr<DiskStore> store_;
  // Under the store's mutex.
  std::shared_ptr<std::atomic<bool>> cut_;
  bool begun_ = false;    // the disks' streams are this one's
  uint64_t boundary_epoch_ = 0;  // all log up to it has come; 0: none is pending
  bool committed_ = false;
};

}  // namespace holdfast
