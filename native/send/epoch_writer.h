// The sending side of the bulk connection (docs/wire-protocol.md), strategy-
// independent: frames, tables, zero runs, digest, acknowledgement.
//
//   Connect → Hello → { round }* → { epoch }*
//   round: BeginRound, Pages…, EndRound (waits for ROUND_OK)
//   epoch: BeginEpoch, Pages…, Prefix?, Device, Commit, AwaitAck
//
// One thread uses a writer at a time. Every call can fail with kPeerLost,
// kProtocol or kCancelled; after a failure the connection is of no further use.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "send/page_run.h"

namespace holdfast {

enum class Strategy { kCopy, kSendfile, kSplice };

struct SendCounters {
  uint64_t pages = 0;       // pages whose bytes travelled
  uint64_t zero_pages = 0;  // pages sent as zero runs
  uint64_t bytes = 0;       // all bytes, headers and tables included
  uint64_t syscalls = 0;    // calls that moved bytes
};

class EpochWriter {
 public:
  struct Hello {
    std::array<std::byte, 32> token;
    uint32_t page_size = 4096;
    uint64_t ram_bytes = 0;
  };

  // Connects, shows the token and waits for HELLO_OK, all within timeout_ms.
  // `cancel` must outlive the writer.
  static Result<std::unique_ptr<EpochWriter>> Connect(const std::string& host, uint16_t port,
                                                      const Hello& hello, Strategy strategy,
                                                      int timeout_ms, const CancelSignal& cancel);
  ~EpochWriter();

  Status BeginRound();
  Status BeginEpoch(uint64_t epoch);

  // Sends runs of `source`, ascending and disjoint by first_page over the whole
  // epoch or round. All-zero pages are found here (reading through
  // source.base) and leave as zero runs. With `stable` false (base rounds) the
  // pages may change meanwhile and are not part of the digest. Returns when the
  // kernel has taken the bytes; by-reference strategies read them later still.
  Status Pages(const PageSource& source, std::span<const PageRun> runs, bool stable);

  Status Prefix(std::span<const std::byte> bytes);
  Status Device(std::span<const std::byte> bytes);

  Status EndRound();  // sends END_ROUND, waits for ROUND_OK
  Status Commit();    // sends COMMIT; the acknowledgement is awaited apart

  struct Ack {
    int64_t previous_apply_us = -1;
  };
  Result<Ack> AwaitAck(uint64_t epoch);

  // Since the last BeginRound or BeginEpoch.
  const SendCounters& counters() const;

 private:
  struct Impl;
  explicit EpochWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
