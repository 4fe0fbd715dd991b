// Ships the disks of a VM to the backup: their base, then their logs as they grow.
//
//   disk servers ──rings──► ship thread ──► disk stream ──► backup
//                               ▲                              │
//                boundaries ────┘        listening thread ◄────┘ received: rings' tails
//
// One thread sends everything, and that is what makes the base copy right: it
// reads a block only after it has sent what was logged before (docs/disk.md).
// Between the disks' logs it goes round robin, a piece of each. It sleeps on the
// rings' futexes, and when a record wakes it, lets some more gather.
//
// The first failure, on either thread, ends both, and the bulk connection
// through `on_end`. Epochs end in the logs where MarkBoundary says.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "base/thread.h"
#include "disk/base_copy.h"
#include "disk/block_set.h"
#include "disk/disk_link.h"
#include "disk/log_reader.h"
#include "disk/log_waiter.h"

namespace holdfast {

// What of the disks' shipping may be looked at from any thread, and outlive it.
struct ShippedDisks {
  struct Disk {
    std::string id;
    std::unique_ptr<LogReader> log;
    std::atomic<uint64_t> copied_bytes{0};  // of log
  };
  std::vector<std::unique_ptr<Disk>> disks;  // as in DISK_STATE

  // Of the base copy.
  std::atomic<bool> copying{false};
  std::atomic<uint64_t> done_bytes{0};
  std::atomic<uint64_t> total_bytes{0};

  void SetStopPending(bool pending) const {
    for (const auto& disk : disks) disk->log->ring().SetStopPending(pending);
  }
};

// Where other threads find them, while there are some.
class ShippedSlot {
 public:
  void Set(std::shared_ptr<const ShippedDisks> disks) {
    const std::lock_guard lock(mutex_);
    disks_ = std::move(disks);
  }
  std::shared_ptr<const ShippedDisks> Get() const {
    const std::lock_guard lock(mutex_);
    return disks_;
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ShippedDisks> disks_;
};

class Shipper {
 public:
  struct Disk {
    std::string id;
    std::string ring_path;
    std::string map_path;
    std::string image_path;
    uint64_t image_bytes = 0;
  };

  // How the two sides of a disk differ.
  struct Difference {
    DiskState peer;
    SyncId local_sync_id{};
    bool local_trusted = false;
    uint64_t local_marked_bytes = 0;
  };

  struct Plan {
    std::string id;
    DiskPlan::What what = DiskPlan::What::kAll;
  };

  struct Synced {
    uint64_t bytes = 0;
    uint64_t hole_bytes = 0;
    double millis = 0;
  };

  // Opens the rings, connects, and learns how the disks differ. `on_end` is called
  // at most once, on a thread of the shipper's; not after its destruction began.
  // `cancel` must outlive it.
  static Result<std::unique_ptr<Shipper>> Connect(std::span<const Disk> disks,
                                                  const DiskLink::Peer& peer,
                                                  const CancelSignal& cancel,
                                                  std::function<void()> on_end);
  // The same over a connected stream socket.
  static Result<std::unique_ptr<Shipper>> Adopt(Descriptor connected,
                                                std::span<const Disk> disks,
                                                const DiskLink::Peer& peer,
                                                const CancelSignal& cancel,
                                                std::function<void()> on_end);
  ~Shipper();
  Shipper(const Shipper&) = delete;
  Shipper& operator=(const Shipper&) = delete;

  const std::vector<Difference>& differences() const { return differences_; }
  std::shared_ptr<const ShippedDisks> shipped() const { return shipped_; }

  // Once: the base, until the backup has it; every disk server logs by now. From
  // then on the logs are shipped.
  Result<Synced> Sync(std::span<const Plan> plans, const SyncId& sync_id);
  bool synced() const { return ready_; }

  // Where the logs end now, by disk; the VM is stopped, and has no write under
  // way. What is left of them leaves at once.
  Result<std::vector<uint64_t>> Heads();

  // The epoch ends there; its frame leaves once the logs have so far. After Sync,
  // one at a time: the one before was acknowledged.
  void MarkBoundary(uint64_t epoch, std::vector<uint64_t> lsns);

  // The backup has received everything below.
  bool Received(std::span<const uint64_t> lsns) const;

  // Why it ended, if it has.
  std::optional<Error> error() const;

 private:
  struct Boundary {
    uint64_t epoch = 0;
    std::vector<uint64_t> lsns;
  };
  struct SyncRequest {
    std::vector<DiskPlan> plans;
    std::vector<BaseCopy> copies;  // by disk
    SyncId sync_id{};
  };

  explicit Shipper(std::shared_ptr<ShippedDisks> shipped);
  static Result<std::unique_ptr<Shipper>> Open(std::span<const Disk> disks);
  Status Meet(std::unique_ptr<DiskLink> link, int timeout_ms);
  Status Match(std::vector<DiskState> states);
  Status TakeMarks(int timeout_ms);
  void Start(std::function<void()> on_end);

  Result<SyncRequest> Prepare(std::span<const Plan> plans);
  Result<BlockSet> ChangedBlocks(size_t disk) const;

  Status ShipLoop();
  Status TakeCommands();
  Result<bool> ShipRound();
  Status ShipTo(size_t disk, uint64_t end);
  Status ShipPart(size_t disk, uint64_t end);
  Status SendDueBoundary();
  Status CopySome();
  void ShowProgress();
  Status FinishCopy();
  Status Sleep(uint32_t commands_seen);

  Status ListenLoop();
  Status OnFrame(const DiskLink::Frame& frame);
  bool AnswerDue() const;

  void Command();
  void Fail(Error error);
  const LogReader& log(size_t disk) const { return *shipped_->disks[disk]->log; }
  size_t disks() const { return shipped_->disks.size(); }

  const std::shared_ptr<ShippedDisks> shipped_;
  std::vector<Disk> local_;  // in the order of shipped_
  std::vector<Difference> differences_;
  std::vector<std::optional<BlockSet>> peer_marks_;
  std::unique_ptr<DiskLink> link_;
  std::function<void()> on_end_;

  // A futex: something below is new for the ship thread.
  std::atomic<uint32_t> commands_{0};
  std::atomic<bool> synced_sent_{false};
  std::atomic<bool> ready_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<SyncRequest> sync_request_;
  std::optional<Boundary> boundary_request_;
  std::optional<Error> error_;
  bool stopping_ = false;

  // The ship thread's.
  bool shipping_ = false;  // DISK_SYNC was sent
  std::optional<SyncRequest> sync_;
  size_t copying_ = 0;  // the disk
  std::optional<Boundary> boundary_;
  LogWaiter waiter_;

  // Read by Sync when the listener has said that all is there.
  std::atomic<uint64_t> base_bytes_{0};
  std::atomic<uint64_t> hole_bytes_{0};

  // Last: they use all of the above.
  Thread ship_thread_;
  Thread listen_thread_;
};

}  // namespace holdfast
