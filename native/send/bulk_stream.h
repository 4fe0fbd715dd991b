// One stream of the sending side: its socket, and its part of what is sent.
//
// One pass per batch of runs: classify pages (zero or not), then frames. What
// is in a table is decided before any of its bytes is hashed or sent. Small
// frames wait for the next large one, and leave in the same call.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "send/disk_index.h"
#include "send/page_run.h"
#include "send/page_sender.h"
#include "send/strategy.h"
#include "send/stream_socket.h"
#include "wire/digest.h"
#include "wire/disk_reference.h"
#include "wire/frame.h"
#include "wire/run_table.h"

namespace holdfast {

// Payload of one PAGES frame: small enough that the first bytes leave while
// most pages are still to be classified, large enough that headers are noise.
inline constexpr uint64_t kFrameBytesMax = uint64_t{4} << 20;

struct SendCounters {
  uint64_t pages = 0;            // pages whose bytes travelled
  uint64_t zero_pages = 0;       // pages sent as zero runs
  uint64_t bytes = 0;            // all bytes, headers and tables included
  uint64_t syscalls = 0;         // calls that moved bytes
  uint64_t copied_bytes = 0;     // of page bytes: copied by the kernel, as far as it says
  uint64_t reference_bytes = 0;  // of page bytes: sent as they lie in memory
  uint64_t completions = 0;      // calls that the kernel has reported on
  double helper_cpu_ms = 0;      // CPU time of sending threads other than the caller's
  uint64_t disk_pages = 0;            // pages sent as references to a disk, beside `pages`
  uint64_t disk_reference_bytes = 0;  // their frames; of `bytes`
  uint64_t disk_pages_different = 0;  // of these, asked for: the disk has something else,
  uint64_t disk_pages_unread = 0;     // or was not read; sent again, and so among `pages`
};

// What the peer asks for in place of an answer.
struct Wanted {
  std::vector<std::byte> table;
  WantedBody why;
};

class BulkStream {
 public:
  // `cancel` must outlive the stream.
  BulkStream(Descriptor connected, uint32_t page_size, const CancelSignal& cancel)
      : socket_(std::move(connected), cancel), page_size_(page_size) {}
  // What was committed has been acknowledged; anything else must not arrive any more.
  ~BulkStream() { socket_.AbortOnClose(); }
  BulkStream(const BulkStream&) = delete;
  BulkStream& operator=(const BulkStream&) = delete;

  // Sends HELLO and waits for HELLO_OK of our version.
  Result<HelloOkBody> Handshake(const HelloBody& hello, int timeout_ms);

  // Opens this stream's part of an epoch (0: of a base round); `digested` says
  // whether what it carries is hashed.
  Status Begin(uint64_t epoch, bool digested, Strategy strategy);
  // Begins the part anew after its end, with pages that the peer asks for. They are
  // sent as they are; End follows.
  void BeginAgain(const WantedBody& why);

  // From the next pages on, those that the index finds are sent as references;
  // none: all as they are. It must outlive what is sent by it.
  void UseIndex(const DiskIndex* index) { index_ = index; }

  // As StreamSocket::LimitUnsent.
  void LimitUnsent(uint64_t bytes) { socket_.LimitUnsent(bytes); }

  // All of the runs, ascending after those before in this slice; zero pages may
  // wait for the slice's end.
  Status Pages(const PageSource& source, std::span<const PageRun> runs);
  Status State(FrameType type, std::span<const std::byte> bytes);

  // Ends a slice of the part: nothing is held back. Pages after the next
  // BeginSlice replace those before.
  Status EndSlice();
  void BeginSlice(Strategy strategy);

  // Ends the part with END_ROUND, COMMIT or END_PART; nothing is held back.
  // `stopped_ns`: as EpochWriter::Commit takes it.
  Status End(FrameType type, std::optional<int64_t> stopped_ns = std::nullopt);

  // Ends the part after a slice, as if it had never begun.
  Status Abandon();

  // Reads one frame of the backward direction: the awaited one, or an error.
  // With `wanted` also WANTED; the header says which it was.
  Result<FrameHeader> Await(FrameType type, std::span<std::byte> body, int timeout_ms,
                            Wanted* wanted = nullptr);

  // Waits until something has come on one of them, or it has ended: its index,
  // the lowest of several.
  static Result<size_t> AwaitFirst(std::span<const std::unique_ptr<BulkStream>> streams,
                                   int timeout_ms);

  // Of a stream on which nothing is due: the peer's ERROR, or that it has ended.
  Error WhyEnded();

  // Waits until the kernel holds no page for any sender that was used.
  Status Finish();

  // Any thread: makes whoever is sending or waiting here fail at once.
  void Interrupt();

  // Since Begin.
  SendCounters counters() const;
  void AddHelperCpu(double cpu_ms) { counters_.helper_cpu_ms += cpu_ms; }

 private:
  // What the senders had counted before, and what they have counted now.
  struct Tally {
    uint64_t copied_bytes = 0;
    uint64_t reference_bytes = 0;
    uint64_t completions = 0;
  };

  void UseStrategy(Strategy strategy);
  Status Queue(FrameHeader header, std::span<const std::byte> table);
  Status SendQueued(std::span<const std::byte> payload, bool more);
  Status FlushZeros();
  Status FlushPages(const PageSource& source);
  bool Refer(const PageSource& source, uint64_t page, uint64_t offset);
  Status FlushReferences();
  Status SendPieces(const PageSource& source);
  Status SendExtents(const PageSource& source, std::span<const Extent> part);
  Strategy StrategyFor(const PageSource& source) const;
  Tally TallyOfSenders() const;
  Error Explain(Error error);

  StreamSocket socket_;
  const uint32_t page_size_;
  // After the socket: they may refer to it until they are gone.
  std::array<std::unique_ptr<PageSender>, kStrategyCount> senders_;
  std::array<bool, kStrategyCount> unfinished_{};  // used since Finish

  Strategy strategy_ = Strategy::kCopy;
  int refused_fd_ = -1;              // a source that strategy_ cannot send,
  std::optional<Strategy> instead_;  // and what sends it
  uint64_t epoch_ = 0;
  uint32_t slice_ = 0;
  bool digested_ = false;
  bool was_refused_ = false;  // the peer sent ERROR
  bool again_ = false;        // since BeginAgain
  PageTotals before_again_;
  Digest digest_;
  SendCounters counters_;
  uint64_t syscalls_before_ = 0;
  Tally tally_before_;

  std::vector<std::byte> queued_;  // frames that wait for the next call

  // A table under construction; neighbouring runs merge.
  class TableBuilder {
   public:
    void Add(uint64_t page);
    void Clear();
    uint64_t pages() const { return pages_; }
    size_t runs() const { return runs_; }
    std::span<const std::byte> Encode();

   private:
    RunTableWriter table_;
    WireRun last_;  // not in the table yet
    size_t runs_ = 0;
    uint64_t pages_ = 0;
  };
  TableBuilder pages_;
  TableBuilder zeros_;
  std::vector<Extent> extents_;  // of the pages in `pages_`, same order

  const DiskIndex* index_ = nullptr;
  TableBuilder referred_;
  std::vector<DiskIndex::Place> places_;    // of these, same order
  std::vector<const std::byte*> contents_;  // and where they are in memory
  std::vector<ContentHash> hashes_;
  std::vector<std::byte> references_;
};

}  // namespace holdfast
