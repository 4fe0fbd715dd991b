// The primary's data plane for one VM, as one thread sees it: every call blocks.
//
//   Attach ─► Connect ─► BaseRound(first) ─► BaseRound… ─► { Prestage… ─► Capture ─► Send }*
//
// With disks ConnectDisks and SyncDisks come before the first Send, too. A capture
// then notes where the logs end, and Send tells the shipper: from there on it is
// one epoch with the pages, acknowledged as one.
//
// The set of pages the backup may lack is never forgotten. Each of them is either
//   dirty in the tracker, not found by any scan yet, or written again since the
//     scan of a base round that found it: the round then leaves it out;
//   in carry_: found, but neither staged nor captured (hot, beyond a limit, or of
//     an epoch that was given up);
//   in ahead_: staged, and perhaps sent, ahead of the coming pause, and not
//     written since;
//   or in epoch_: captured and not acknowledged.
//   or in later_: the VM was stopped for good, and runs elsewhere without them
//     until ServePages has brought them.
// After a base round that failed, or a scan of which the outcome is unknown, all
// pages count as dirty.
//
// After IndexDisks pages that a disk of both sides has leave as references to it, in
// rounds and in epochs of which nothing was sent ahead.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "capture/ahead_pages.h"
#include "capture/hot_pages.h"
#include "capture/staging_pool.h"
#include "capture/tracked_ram.h"
#include "disk/shipper.h"
#include "postcopy/page_server.h"
#include "primary/round_pace.h"
#include "send/disk_index.h"
#include "send/epoch_writer.h"

namespace holdfast {

class Primary {
 public:
  struct Options {
    RamPlace ram;
    uint64_t staging_bytes_max = 0;
    Strategy strategy = Strategy::kCopy;  // of base rounds
    unsigned copy_threads = 1;
    std::vector<Shipper::Disk> disks{};
  };

  struct Attached {
    bool adopted = false;
    double inject_ms = 0;
  };

  struct Peer {
    std::string host;
    uint16_t port = 0;
    std::array<std::byte, 32> token{};
    int timeout_ms = 0;
    unsigned streams = 1;
    bool verify = true;
  };

  // Pages that were sent as references to a disk.
  struct DiskPages {
    uint64_t referenced = 0;
    uint64_t different = 0;  // of these, the disk had something else,
    uint64_t unread = 0;     // or was not read: both came again, in full
    uint64_t reference_bytes = 0;
  };

  struct Round {
    uint64_t pages = 0;
    uint64_t zero_pages = 0;
    uint64_t skipped_pages = 0;  // beside these: written again before they were sent
    uint64_t bytes = 0;
    uint64_t dirty_pages = 0;  // at its end: written since its scan, skipped ones included
    double scan_ms = 0;
    double send_ms = 0;
    double look_ms = 0;   // of send_ms: finding what to skip
    double count_ms = 0;  // of dirty_pages
    std::optional<DiskPages> disk_pages{};  // with an index only
  };

  // kLater: the epoch has no pages; what it lacks is served when it runs already.
  enum class Mode { kStaged, kDirect, kLater };

  struct Slice {
    uint64_t epoch = 0;  // the one that will be captured next
    bool send = false;   // ahead of the pause, too
    Strategy strategy = Strategy::kCopy;
    std::optional<uint64_t> bytes_max;  // of the slice's pages
  };

  struct Prestaged {
    uint64_t pages = 0;             // staged
    uint64_t held_back_pages = 0;   // hot: left for the pause
    uint64_t superseded_pages = 0;  // staged before in this epoch, and written since
    uint64_t superseded_sent_pages = 0;
    uint64_t bytes = 0;  // sent
    double scan_ms = 0;
    double copy_ms = 0;
    double send_ms = 0;
  };

  struct Captured {
    Mode mode = Mode::kDirect;
    uint64_t dirty_pages = 0;       // of the epoch, prestaged ones included
    uint64_t prestaged_pages = 0;   // staged before the pause
    uint64_t superseded_pages = 0;  // of these, written again before the pause
    uint64_t ahead_pages = 0;       // of these, sent and not written again
    uint64_t held_back_pages = 0;   // hot when the last slice was taken
    uint64_t runs = 0;
    uint64_t later_pages = 0;  // kLater: to be served
    uint64_t disk_bytes = 0;  // of log
    double scan_ms = 0;
    double copy_ms = 0;
  };

  struct StateFile {
    std::string path;
    uint64_t skip_bytes = 0;
    std::optional<uint64_t> bytes_max;
  };

  struct Sent {
    SendCounters counters;
    uint64_t device_bytes = 0;
    uint64_t device_sent_bytes = 0;  // less where a delta travelled
    uint64_t superseded_bytes = 0;   // pages that were sent ahead in vain
    uint64_t disk_bytes = 0;         // of log, beside counters.bytes
    double send_ms = 0;
    double ack_ms = 0;
    double cpu_ms = 0;  // of all sending threads
    double previous_apply_ms = -1;
    std::optional<DiskPages> disk_pages{};
  };

  explicit Primary(const Options& options) : options_(options) {}
  ~Primary() { shipped_->Set(nullptr); }
  Primary(const Primary&) = delete;
  Primary& operator=(const Primary&) = delete;

  Result<Attached> Attach();
  // `cancel` cuts what waits on this connection, from any thread.
  Status Connect(const Peer& peer, std::shared_ptr<const CancelSignal> cancel);
  // After Connect: how the disks differ.
  Result<std::vector<Shipper::Difference>> ConnectDisks();
  // Once their servers log: the disks' base.
  Result<Shipper::Synced> SyncDisks(std::span<const Shipper::Plan> plans, const SyncId& sync_id);
  // Pages of 4 KiB only: kUnsupported. Until the connection ends; begins to read.
  Status IndexDisks(std::span<const DiskIndex::Disk> disks, uint64_t table_bytes_max);
  // Of that, until all is read, for so long at most.
  Result<DiskIndex::Progress> AwaitIndex(int timeout_ms, const CancelSignal& cancel);
  // `prefix_ahead`: of the stopped VM, which the first epoch may have.
  Result<Round> BaseRound(bool first, const CancelSignal& cancel,
                          const std::optional<StateFile>& prefix_ahead = std::nullopt);
  // Speculative: stages what is dirty by now, while the VM runs, and sends it as
  // a slice of the epoch (capture/ahead_pages.h).
  Result<Prestaged> Prestage(const Slice& slice);
  // While the VM runs, before a capture as kLater of which nothing was sent: what
  // RAM holds, so that the pause only has to look for what was written since.
  Status FindPopulated();
  // The VM has just been stopped.
  Result<Captured> Capture(uint64_t epoch, Mode mode);
  Result<Sent> Send(uint64_t epoch, Strategy strategy, const StateFile& device,
                    const std::optional<StateFile>& prefix);
  // Once an epoch captured as kLater is acknowledged: brings its pages to `peer`,
  // over a connection of their own. After kPeerLost or kConnect it may be called again.
  Result<PagesHaveBody> ServePages(const Peer& peer, const CancelSignal& cancel);
  // Gives up what was captured, or sent ahead, of this epoch.
  void Abort(uint64_t epoch);
  void Disconnect();
  Status Detach();

  // Readies staging for the next capture; called while nobody waits.
  void Prepare();

  Strategy base_strategy() const { return options_.strategy; }

  // An epoch is captured and neither acknowledged nor given up.
  bool epoch_open() const { return epoch_.has_value(); }

  // Where any thread finds the disks that are connected; outlives this object.
  std::shared_ptr<const ShippedSlot> shipped() const { return shipped_; }

  // Of ServePages, likewise.
  std::shared_ptr<const ServeProgress> serve_progress() const { return serve_progress_; }

 private:
  struct Epoch {
    uint64_t number;
    Mode mode;
    int64_t stopped_ns;  // the host's monotonic clock
    std::vector<PageRun> runs{};      // to be sent
    std::vector<PageRun> ahead{};     // sent and valid, beside these
    bool begun = false;               // on the wire, by slices
    uint64_t superseded_pages = 0;    // sent in vain
    double ahead_cpu_ms = 0;
    Result<std::vector<uint64_t>> disk_ends = std::vector<uint64_t>{};  // of the logs
    uint64_t disk_bytes = 0;
  };

  struct Dirty {
    std::vector<PageRun> written;  // found by this scan
    std::vector<PageRun> pages;    // and those that were carried
  };
  Result<Dirty> TakeDirtyPages(bool all, WorkerPool& pool);
  Result<Dirty> TakePopulated();
  Status SendRound(const std::vector<PageRun>& runs, const CancelSignal& cancel,
                   std::span<const std::byte> prefix_ahead, Round& round);
  Status LeaveOutWritten(std::vector<PageRun>& batch, RoundPace& pace) const;
  Result<Sent> SendEpoch(const Epoch& epoch, Strategy strategy, std::span<const std::byte> device,
                         std::span<const std::byte> prefix);
  Status CheckSlice(const Slice& slice) const;
  uint64_t AheadRoomPages(const Slice& slice) const;
  Status SendSlice(const Slice& slice, Prestaged& prestaged);
  bool Stage(std::vector<PageRun>& dirty, Epoch& epoch);
  void LeaveForLater(const Dirty& dirty);
  void NoteDisks(Epoch& epoch);
  Status CheckDisks(const Epoch& epoch) const;
  Status AwaitDisks(const Epoch& epoch);
  Error Explained(Error error) const;
  void Carry(const std::vector<PageRun>& runs);
  void GiveUp(const Epoch& epoch);
  void GiveUpAhead();
  void CarryAhead();
  void EndAhead();
  void Abandon();

  const Options options_;

  // Destroyed in reverse: the connection may refer to staging and guest RAM.
  std::optional<TrackedRam> guest_;  // while attached
  std::unique_ptr<StagingPool> staging_;
  std::unique_ptr<WorkerPool> pool_;
  WorkerPool alone_{1};  // while the VM runs, the other cores are its
  std::shared_ptr<const CancelSignal> cancel_;
  Peer peer_;  // of the writer
  std::unique_ptr<DiskIndex> index_;  // the writer may use it
  std::unique_ptr<EpochWriter> writer_;
  std::unique_ptr<Shipper> shipper_;  // interrupts the writer until it is gone
  std::vector<uint64_t> disk_ends_;   // of the epoch acknowledged last
  const std::shared_ptr<ShippedSlot> shipped_ = std::make_shared<ShippedSlot>();

  std::vector<PageRun> later_;
  std::vector<PageRun> later_hot_;  // of these, written lately, too (LeaveForLater)
  const std::shared_ptr<ServeProgress> serve_progress_ = std::make_shared<ServeProgress>();
  std::unique_ptr<PageServer> page_server_;

  std::optional<Epoch> epoch_;
  std::vector<PageRun> round_written_;  // found by the scan of the last round but the first
  std::unique_ptr<HotPages> hot_;
  AheadPages ahead_;
  uint64_t ahead_epoch_ = 0;  // that ahead_ is of
  uint64_t ahead_staged_pages_ = 0;
  uint64_t held_back_pages_ = 0;
  double ahead_cpu_ms_ = 0;
  std::vector<PageRun> carry_;
  bool base_sent_ = false;          // on this connection
  bool dirty_set_unknown_ = true;   // until the tracker is armed
  uint64_t staged_bytes_last_ = 0;
};

}  // namespace holdfast
