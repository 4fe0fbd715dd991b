// The data plane of checkpoints on disk for one VM, as one thread sees it: every
// call blocks.
//
//   Attach ─► { Begin ─► Round… ─► Capture ─► Finish ─► Commit }*  ─► Detach
//                 VM runs      VM stopped   VM runs
//
// The set of pages that the last committed layer may lack is never forgotten.
// Each of them is either
//   dirty in the tracker, not found by any scan yet;
//   in carry_: found, and of a layer that was given up;
//   in the table of the layer being written, or in captured_.
// After a scan of which the outcome is unknown only a full layer will do.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "capture/staging_pool.h"
#include "capture/tracked_ram.h"
#include "checkpoint/layer_writer.h"

namespace holdfast {

class Checkpointer {
 public:
  struct Options {
    RamPlace ram;
    uint64_t staging_bytes_max = 0;
    unsigned copy_threads = 1;
  };

  struct Attached {
    bool adopted = false;
    double inject_ms = 0;
  };

  struct Round {
    uint64_t content_pages = 0;
    uint64_t zero_pages = 0;
    uint64_t dirty_pages = 0;  // at its end: written since its scan
    double scan_ms = 0;
    double write_ms = 0;
  };

  struct Captured {
    // False: too much to stage. The VM must stay stopped until Finish returns.
    bool staged = false;
    uint64_t dirty_pages = 0;
    double scan_ms = 0;
    double copy_ms = 0;
  };

  struct Finished {
    uint64_t content_pages = 0;  // of the layer
    uint64_t zero_pages = 0;
    uint64_t trailer = 0;  // of its index
    double write_ms = 0;
  };

  explicit Checkpointer(const Options& options) : options_(options) {}
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  Result<Attached> Attach();
  // A layer that was begun and not committed is given up. An increment needs a
  // committed layer of this attachment below it.
  Status Begin(const std::string& ram_path, bool full);
  // While the VM runs: writes what is populated, for the first of a full layer,
  // or dirty by now.
  Result<Round> WriteRound(const CancelSignal& cancel);
  // The VM has just been stopped.
  Result<Captured> Capture();
  Result<Finished> Finish(const std::string& index_path, const CancelSignal& cancel);
  // The layer is a checkpoint's from here on.
  void Commit();
  void GiveUp();
  Status Detach();
  // Readies staging for the next capture; called while nobody waits.
  void Prepare();

 private:
  Result<std::vector<PageRun>> TakeDirtyPages(WorkerPool& pool);
  void Carry(const std::vector<PageRun>& runs);

  const Options options_;

  std::optional<TrackedRam> guest_;  // while attached
  std::unique_ptr<StagingPool> staging_;
  std::unique_ptr<WorkerPool> pool_;
  WorkerPool alone_{1};  // while the VM runs, the other cores are its

  std::unique_ptr<LayerWriter> layer_;
  std::vector<PageRun> captured_;
  bool captured_staged_ = false;
  std::vector<PageRun> carry_;
  bool base_needed_ = true;  // only a full layer will do
  bool whole_ram_next_ = false;
  uint64_t staged_bytes_last_ = 0;
};

}  // namespace holdfast
