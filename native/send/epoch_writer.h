// The sending side of the bulk connection (docs/wire-protocol.md), strategy-
// independent: frames, tables, zero runs, digests, acknowledgement.
//
//   Connect → { round }* → { epoch }*
//   round: BeginRound, PrefixAhead?, Pages…, EndRound (waits for ROUND_OK)
//   epoch: BeginEpoch, { Pages…, EndSlice }*, Pages…, Prefix?, Device, Commit, AwaitAck
//          or after a slice Abandon, as if the epoch had never begun
//
// With an index, pages that a disk has leave as references to it. What the backup
// does not find there it asks for while EndRound and AwaitAck wait, and gets in full.
//
// Slices are sent ahead of the pause, each page as it was at some moment; the
// last content of a page counts, in whatever order the streams arrive.
//
// With several streams, each but the caller's own has a thread; whichever is
// free takes the next pages, so a slow stream carries less.
//
// One thread uses a writer at a time. Every call can fail with kPeerLost,
// kProtocol or kCancelled; after a failure the connection is of no further use.
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
#include "send/bulk_stream.h"
#include "send/page_run.h"
#include "send/strategy.h"

namespace holdfast {

class EpochWriter {
 public:
  struct Hello {
    std::array<std::byte, 32> token;
    uint32_t page_size = 4096;
    uint64_t ram_bytes = 0;
    bool verify = true;  // false: neither side computes digests; so too if the peer wants none
  };

  // Connects so many streams (1 to kStreamsMax), shows the token on each and
  // waits for HELLO_OK, all within timeout_ms. `cancel` must outlive the writer.
  static Result<std::unique_ptr<EpochWriter>> Connect(const std::string& host, uint16_t port,
                                                      const Hello& hello, unsigned streams,
                                                      int timeout_ms, const CancelSignal& cancel);
  // The same over a connected stream socket.
  static Result<std::unique_ptr<EpochWriter>> Adopt(Descriptor connected, const Hello& hello,
                                                    int timeout_ms, const CancelSignal& cancel);
  ~EpochWriter();

  // From the next round, epoch or slice on; kCopy at first. Not in the middle of one.
  void UseStrategy(Strategy strategy);
  // The same; none at first. Whoever uses one says where the pages are once more.
  void UseIndex(const DiskIndex* index);

  // From now on, each stream; 0, as at first: no limit (send/stream_socket.h).
  void LimitUnsent(uint64_t bytes);

  // Where all pages of a round, or of an epoch without slices, can be read again.
  struct Again {
    PageSource source;
    std::span<const PageRun> runs;  // as they were sent
  };

  Status BeginRound();
  Status BeginEpoch(uint64_t epoch);

  // Sends runs of `source`, ascending and disjoint by first_page over the whole
  // slice or round. All-zero pages are found here (reading through
  // source.base) and leave as zero runs. With `stable` false (base rounds) the
  // pages may change meanwhile and are not part of the digest. Returns when the
  // kernel has taken the bytes; by-reference strategies read them later still.
  Status Pages(const PageSource& source, std::span<const PageRun> runs, bool stable);

  // What was sent so far is a slice; pages after it replace those in it. At most
  // kSlicesMax - 1 times in an epoch. Waits for nothing of the backup's.
  Status EndSlice();
  // Right after EndSlice: gives the epoch up, and waits until the backup has
  // dropped what it had of it, as AwaitAck waits.
  Status Abandon();

  // In a round, at most once: a prefix that a later epoch of this connection may have.
  // Nothing where the peer does not understand that.
  Status PrefixAhead(std::span<const std::byte> bytes);
  // By its name where it was sent ahead.
  Status Prefix(std::span<const std::byte> bytes);
  // As changes to the state that was acknowledged last, where that is shorter.
  Status Device(std::span<const std::byte> bytes);
  // What the last Device sent.
  uint64_t device_bytes_sent() const;

  Status EndRound(const Again* again = nullptr);  // sends END_ROUND, waits for ROUND_OK
  // Sends COMMIT; the acknowledgement is awaited apart. `stopped_ns`: the host's
  // monotonic clock when the VM was stopped, of which the peer learns how long
  // ago that was.
  Status Commit(std::optional<int64_t> stopped_ns = std::nullopt);

  struct Ack {
    int64_t previous_apply_us = -1;
  };
  // When this and EndRound return, nobody reads the pages any more: the peer
  // has them, and the kernel has let go of them.
  Result<Ack> AwaitAck(uint64_t epoch, const Again* again = nullptr);

  bool verified() const;  // the sides agreed on digests
  uint64_t link() const;  // of HELLO_OK: what belongs to this connection names it

  // Waits until the backup has said something, on any stream, or has ended it;
  // false: not within this time.
  Result<bool> AwaitWord(int timeout_ms);

  // Any thread: ends the connection, whoever uses it.
  void Interrupt();

  // Since the last BeginRound or BeginEpoch, over all streams.
  SendCounters counters() const;

 private:
  struct Impl;
  explicit EpochWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
