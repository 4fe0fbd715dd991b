// The library's sender (lib/transfer) as one thread sees it: every call blocks.
//
//   Open ─► Connect ─► { [Stage ─►] Send }*
//
// A transfer is an epoch on the wire, and its metadata the device state: so it
// arrives whole and verified, or not at all. After a transfer that failed once
// it had begun, the connection is gone and every further call fails alike: a
// peer that may lack a transfer must not get the next one as if it had it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "capture/staging_pool.h"
#include "send/epoch_writer.h"

namespace holdfast {

class TransferEngine {
 public:
  // Part of a file, mapped for reading. `file` is used if it is valid, else `path`.
  struct Region {
    Descriptor file;
    std::string path;
    uint64_t file_offset = 0;
    uint64_t bytes = 0;
    uint32_t page_size = 4096;
    uint64_t staging_bytes_max = 0;
  };

  // `socket`, connected, is used if it is valid, else `host` and `port`.
  struct Peer {
    Descriptor socket;
    std::string host;
    uint16_t port = 0;
    unsigned streams = 1;
    std::array<std::byte, 32> token{};
    bool verify = true;
    int timeout_ms = 0;
  };

  struct Sent {
    SendCounters counters;
    double send_ms = 0;
    double ack_ms = 0;
    double cpu_ms = 0;
  };

  // `cancel` cuts whatever waits, from any thread; it outlives the engine.
  explicit TransferEngine(const CancelSignal& cancel) : cancel_(cancel) {}
  TransferEngine(const TransferEngine&) = delete;
  TransferEngine& operator=(const TransferEngine&) = delete;

  Status Open(Region region);
  Status Connect(Peer peer);

  // Copies the runs' pages aside for the Send that follows; returns the time it
  // took. The last transfer is acknowledged, or the engine has failed: so nothing
  // refers to the pool any more ("no torn pages").
  Result<double> Stage(std::vector<PageRun> runs);

  // Runs are ascending, disjoint and inside the region. `staged`: those of the
  // last Stage, whose failure is then this call's too.
  Result<Sent> Send(uint64_t id, std::span<const PageRun> runs, bool staged, Strategy strategy,
                    std::span<const std::byte> metadata);

 private:
  Status CheckFile() const;
  Status Map(Region region);
  Result<Sent> SendEpoch(uint64_t id, const PageSource& source, std::span<const PageRun> runs,
                         std::span<const std::byte> metadata);

  const CancelSignal& cancel_;

  // Destroyed in reverse: the connection may refer to the region and to staging.
  Descriptor file_;
  Mapping memory_;
  uint64_t file_offset_ = 0;
  uint32_t page_size_ = 4096;
  std::unique_ptr<StagingPool> staging_;
  WorkerPool alone_{1};
  std::unique_ptr<EpochWriter> writer_;

  std::vector<PageRun> staged_runs_;
  std::optional<Error> stage_failure_;  // of the last Stage
  std::optional<Error> failure_;        // of the connection
};

}  // namespace holdfast
