// What the receiver may be sent, and when: a pure state machine over the
// frames of all streams of a connection.
//
//   stream 0:  Idle ── BEGIN ──► Open ─┐ PAGES ZERO REFERENCES, PREFIX or PREFIX_KEPT,
//                                 │  ◄─┘ in a round PREFIX_AHEAD
//                                 ├── DEVICE(_DELTA) ► Sealed ─ COMMIT ─► Ended
//                                 ├── END_ROUND ────────────────────► Ended
//                                 └── ABANDON ──────────────────────► Ended
//   others:    Idle ── BEGIN ──► Open ─┐ PAGES ZERO REFERENCES
//                                 │  ◄─┘
//                                 ├── END_PART ─────────────────────► Ended
//                                 └── ABANDON ──────────────────────► Ended
//
// The first BEGIN opens the epoch or the round for all streams; when the parts
// of all have ended it is whole, or given up where all were abandoned, and all
// are idle again. Limits, and that a page comes once in a slice, hold over all
// streams together.
//
// Pages that came as references and were not found on the disk are wanted: when
// all parts have ended they are asked for, and come on stream 0, until none is:
//
//   stream 0:  Ended ── WANTED was sent ──► Amending ─┐ PAGES ZERO
//                                                │  ◄─┘
//                                                └── COMMIT, END_ROUND ──► Ended
//
// The caller reads a header, then the table, then the payload, and shows each
// to the decoder before it acts on it. After an error the connection is void.
// No I/O, no clock and no lock in here: the fuzzer drives the same calls, and
// the receive threads take turns.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "wire/frame.h"
#include "wire/page_bitmap.h"
#include "wire/wanted_pages.h"

namespace holdfast {

struct WireLimits {
  uint32_t page_size = 4096;
  uint64_t ram_bytes = 0;
  uint64_t epoch_bytes_max = 0;   // page bytes of one epoch, each page counted once
  uint64_t device_bytes_max = 0;  // DEVICE and PREFIX, each
  // Of the disks that pages may be referred to, by number; 0: this side lacks it.
  std::span<const uint64_t> reference_disks{};
};

// All page bytes that an epoch may carry, over those that count: of each two
// bytes sent ahead of the pause, one may have been in vain.
inline constexpr uint64_t kEpochBytesFactor = 2;
constexpr uint64_t EpochBytesSentMax(const WireLimits& limits) {
  return kEpochBytesFactor * limits.epoch_bytes_max;
}

class FrameDecoder {
 public:
  explicit FrameDecoder(const WireLimits& limits);

  // Forgets what a lost connection began. The last committed epoch stays: a
  // base round after it would tear the checkpoint.
  void NewConnection(unsigned streams);

  // Every frame after the handshake.
  Result<FrameHeader> Header(unsigned stream, std::span<const std::byte, kFrameHeaderBytes> bytes);

  // Table of the PAGES, ZERO or REFERENCES frame whose header came last on this stream.
  Status Table(unsigned stream, std::span<const std::byte> table);

  // After its table, the payload of REFERENCES. Want() says of which pages the disk
  // does not have the content; before this stream's part ends.
  Status References(unsigned stream, std::span<const std::byte> payload) const;
  void Want(const WireRun& run) { wanted_.Want(run); }

  // Payload of PREFIX_AHEAD: the prefix in it, which is kept for the connection, in
  // place of one before. Its digest is its own: rounds have none.
  Result<std::span<const std::byte>> PrefixAhead(std::span<const std::byte> payload);
  // Payload of PREFIX_KEPT: is it the one that is kept?
  Status PrefixKept(std::span<const std::byte, PrefixName::kBytes> payload) const;

  // After the header of ABANDON. True: it was the last part's, and the epoch is
  // given up, as if it had never begun.
  Result<bool> Abandon(unsigned stream);

  // Payload of END_ROUND, COMMIT or END_PART. `digest` is what the receiver
  // computed, 0 if nothing. True: this was the last part, all has come.
  Result<bool> EndPart(unsigned stream, std::span<const std::byte> payload, uint64_t digest);
  // All parts have ended, but pages are wanted: AskAgain() gives the table of the
  // next WANTED frame, and stream 0 is open for them.
  bool wanting() const { return work_ != Work::kNone && parts_ended_ == parts_.size(); }
  std::span<const std::byte> AskAgain();

  bool in_epoch() const { return work_ == Work::kEpoch; }
  bool in_round() const { return work_ == Work::kRound; }
  // Of what is open, or has ended last; the epoch is 0 in a round.
  uint64_t epoch() const { return epoch_; }
  const PageTotals& totals() const { return totals_; }

 private:
  enum class Work { kNone, kRound, kEpoch };
  struct Part {
    // kAmending: PAGES and ZERO of what was asked for.
    enum class State { kIdle, kOpen, kSealed, kEnded, kAmending };
    State state = State::kIdle;
    FrameHeader current;
    uint32_t slice = 0;  // the newest so far
    PageTotals totals;
  };

  Status CheckOrder(unsigned stream, const FrameHeader& header) const;
  Status CheckBegin(unsigned stream, const FrameHeader& header) const;
  Status CheckNew(const FrameHeader& header) const;
  Status CheckBudget(const FrameHeader& header) const;
  uint64_t PageBytesOf(const FrameHeader& header) const;
  Status CheckAskedFor(const FrameHeader& frame, std::span<const std::byte> table);
  Status CheckOnce(const FrameHeader& frame, std::span<const std::byte> table);
  void Enter(unsigned stream, const FrameHeader& header);
  void Open(const FrameHeader& begin);
  PageBitmap& SeenIn(uint32_t slice);
  void Close();

  const WireLimits limits_;
  const uint64_t ram_pages_;

  uint64_t last_committed_ = 0;
  bool committed_here_ = false;  // on this connection: what a delta is against
  bool round_torn_ = false;  // a round began and never ended

  std::vector<Part> parts_;  // by stream
  Work work_ = Work::kNone;
  uint64_t epoch_ = 0;
  uint64_t page_bytes_ = 0;  // announced by the epoch's PAGES headers
  bool prefix_seen_ = false;  // in what is open
  std::optional<PrefixName> kept_prefix_;  // on this connection
  size_t parts_ended_ = 0;
  size_t parts_abandoned_ = 0;  // of these
  PageTotals totals_;
  std::vector<PageBitmap> seen_;  // by slice: pages of what is open
  WantedPages wanted_;            // of what is open
};

}  // namespace holdfast
