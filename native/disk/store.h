// The replicas of a VM's disks on the backup, as a whole: opened and recovered
// once, filled by one session after the other, retired at a takeover.
//
//   DiskSession ─ base, log ─► journals ─┬─ durable thread: rounds (disk_set.h)
//        │                               ├─ apply thread: journal ─► image, aside ─► image
//        └─ commit ─────────────────────►└─ sync thread: the image, so that room is free again
//
// The newest session has the log. An older one's checkpoint stands beside it
// until the new one's first commit, which makes it void: one of the two can be
// committed to, or fenced, and one mutex says which.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/thread.h"
#include "disk/disk_directory.h"
#include "disk/disk_file.h"
#include "disk/disk_map.h"
#include "disk/disk_set.h"
#include "disk/image_file.h"

namespace holdfast {

class DiskSession;

// Two records of the largest size must fit into what is held back.
inline constexpr uint64_t kJournalBytesMin = uint64_t{8} << 20;

class DiskStore : public std::enable_shared_from_this<DiskStore> {
 public:
  struct Disk {
    std::string id;
    std::string image_path;
    std::string meta_dir;
    uint64_t image_bytes = 0;
    uint64_t journal_bytes = 0;
    bool adopt = false;  // an image that has content, and none of our metadata
  };

  struct Event {
    enum class Type { kApplied, kDurable, kMerged, kFault };
    Type type = Type::kApplied;
    uint64_t epoch = 0;
    std::string id{};  // kFault
    Error error{};
  };
  // Called on the store's threads; must not block and must not call back.
  using EventSink = std::function<void(const Event&)>;

  struct Opened {
    std::string id;
    bool fresh = false;
    SyncId sync_id{};
    bool trusted = false;
    uint64_t marked_bytes = 0;
    uint64_t committed_epoch = 0;
    bool recovered = false;  // something of the journal was still to be applied
  };

  struct Stats {
    std::string id;
    uint64_t journal_bytes = 0;
    uint64_t journal_used_bytes = 0;
    uint64_t received_bytes = 0;  // of log, since the store was opened
    uint64_t base_bytes = 0;
    uint64_t applied_bytes = 0;  // of log
    uint64_t committed_epoch = 0;
    uint64_t durable_epoch = 0;
    bool merging = false;
  };

  static std::shared_ptr<DiskStore> Create(std::vector<Disk> disks, EventSink sink);
  ~DiskStore();

  // Creates what is missing, locks, recovers. On an open store: tries once more
  // what had failed. kDisk, kDiskForeign, or what the system says.
  Result<std::vector<Opened>> Open();
  std::vector<Stats> stats();
  // At a takeover, after the fence: the images are on stable storage and nobody's
  // here any more, the journals say so. Idempotent; after a failure it may be repeated.
  Status Retire();
  // Everything stays; what is committed is durable, unless a disk has failed.
  // Not from the store's threads; sessions have ended, or are ended. Idempotent.
  Status Close();

  // Open() and Retire() give up what they wait for, and every later one at once.
  void Cancel();

  // For one replica of RAM. Outlives the store's closing, with errors.
  std::unique_ptr<DiskSession> NewSession();

  size_t size() const { return disks_.size(); }

 private:
  friend class DiskSession;
  using Lock = std::unique_lock<std::mutex>;

  // Of one disk, beside what the set has.
  struct OpenDisk {
    OpenDisk(const std::string& meta_dir, ImageFile locked, std::unique_ptr<DiskFile> writable,
             DiskMap marks)
        : directory(meta_dir), lock(std::move(locked)), image(std::move(writable)), map(std::move(marks)) {}
    DiskDirectory directory;
    ImageFile lock;
    std::unique_ptr<DiskFile> image;
    std::optional<DiskMap> map;
    bool fresh = false;
    // Marks below are in the older window; forgotten once they are durable.
    std::optional<uint64_t> window_lsn{};
    double rotated_ms = 0;
    uint64_t received_bytes = 0;
    uint64_t base_bytes = 0;
    uint64_t applied_bytes = 0;
    std::optional<Error> apply_fault{};  // it may be tried again
  };
  // Where an epoch ends in the logs: to tell when it has been applied.
  struct Applying {
    uint64_t epoch;
    std::vector<uint64_t> lsns;
  };
  enum class State {
    kClosed,
    kBusy,  // being opened or closed, by a thread that needs no lock for it
    kOpen,
    kRetiring,  // the journals say that it has retired, and not every map is closed
    kRetired,
  };

  DiskStore(std::vector<Disk> disks, EventSink sink);

  // Opening (store_open.cc).
  Status CheckOptions() const;
  Result<std::unique_ptr<OpenDisk>> OpenOne(const Disk& options) const;
  Status OpenSet();
  Result<std::unique_ptr<Journal>> OpenJournal(const Disk& options, OpenDisk& disk) const;
  Result<bool> ResizeJournals();
  Status AdoptSyncIds();
  Result<std::vector<bool>> OpenAll();
  std::vector<Opened> Describe(const std::vector<bool>& recovered) const;
  void Release();

  void Start();
  void StopThreads();
  void DurableLoop();
  void ApplyLoop();
  void SyncLoop();
  bool ApplyOne(Lock& lock, size_t index);
  void RoundDone(Lock& lock, uint64_t epoch);
  void TellApplied();
  void CommittedLocked(uint64_t epoch);
  Status AwaitAppliedLocked(Lock& lock, const std::function<bool()>& cancelled);
  Status RemoveJournals(Lock& lock);
  void Fail(size_t index, const Error& error);
  std::optional<Error> FaultLocked() const;
  void RetryLocked();
  void EndStreamsLocked();
  bool DrainedLocked() const;
  bool HasRetiredLocked() const { return state_ == State::kRetiring || state_ == State::kRetired; }
  Status RetireJournals(Lock& lock);
  Status CloseMaps();
  // Until it holds, or a fault or `cancelled` prevents it.
  Status AwaitLocked(Lock& lock, const std::function<bool()>& condition,
                     const std::function<bool()>& cancelled);

  const std::vector<Disk> disks_;
  const EventSink sink_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below under mutex_, but for what Plan and Finish surround, and while busy.
  State state_ = State::kClosed;
  std::vector<std::unique_ptr<OpenDisk>> open_;
  std::optional<DiskSet> set_;
  std::optional<Error> journal_fault_;  // until it is opened anew
  std::atomic<bool> stop_{false};       // the threads
  std::atomic<bool> cancelled_{false};  // who waits
  uint64_t told_durable_ = 0;
  std::deque<Applying> applying_;
  bool closing_ = false;  // no other stream begins
  bool removing_ = false;  // broken journals, without the lock
  unsigned ending_ = 0;  // streams that wait for the apply thread to let go

  DiskSession* streaming_ = nullptr;   // has the log
  DiskSession* checkpoint_ = nullptr;  // has committed last
  DiskSession* fenced_ = nullptr;      // its checkpoint may be taken over

  Thread durable_thread_;
  Thread apply_thread_;
  Thread sync_thread_;
};

}  // namespace holdfast
