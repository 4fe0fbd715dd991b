// What the receiver may be sent, and when: a pure state machine over frames.
//
//             BEGIN(BASE)              BEGIN(N)
//      Round ◄──────────── Between ──────────────► Epoch ─┐ PAGES ZERO PREFIX
//        │ PAGES ZERO         ▲ ▲                    │  ◄─┘
//        └──── END_ROUND ─────┘ └───── COMMIT ── Sealed
//                                                  ▲ DEVICE
//
// The caller reads a header, then the table, then the payload, and shows each
// to the decoder before it acts on it. After an error the connection is void.
// No I/O and no clock in here: the fuzzer drives the same calls.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "wire/frame.h"
#include "wire/page_bitmap.h"

namespace holdfast {

struct WireLimits {
  uint32_t page_size = 4096;
  uint64_t ram_bytes = 0;
  uint64_t epoch_bytes_max = 0;   // page bytes of one epoch
  uint64_t device_bytes_max = 0;  // DEVICE and PREFIX, each
};

class FrameDecoder {
 public:
  explicit FrameDecoder(const WireLimits& limits);

  // Forgets what a lost connection began. The last committed epoch stays: a
  // base round after it would tear the checkpoint.
  void NewConnection();

  // Every frame after the handshake.
  Result<FrameHeader> Header(std::span<const std::byte, kFrameHeaderBytes> bytes);

  // Table of the PAGES or ZERO frame whose header came last.
  Status Table(std::span<const std::byte> table);

  // Payloads of END_ROUND and COMMIT. `digest` is what the receiver computed.
  Result<PageTotals> EndRound(std::span<const std::byte, PageTotals::kBytes> payload);
  Result<PageTotals> Commit(std::span<const std::byte, CommitBody::kBytes> payload,
                            uint64_t digest);

  bool in_epoch() const { return phase_ == Phase::kEpoch || phase_ == Phase::kSealed; }
  bool in_round() const { return phase_ == Phase::kRound; }
  uint64_t epoch() const { return epoch_; }

 private:
  enum class Phase { kBetween, kRound, kEpoch, kSealed };

  Status CheckOrder(const FrameHeader& header) const;
  Status CheckBegin(const FrameHeader& header) const;
  Status CheckBudget(const FrameHeader& header) const;
  void Enter(const FrameHeader& header);

  const WireLimits limits_;
  const uint64_t ram_pages_;

  Phase phase_ = Phase::kBetween;
  uint64_t epoch_ = 0;            // of the open epoch; 0 in a round
  uint64_t last_committed_ = 0;
  bool round_torn_ = false;       // a round began and never ended
  bool prefix_seen_ = false;
  FrameHeader current_;
  PageTotals totals_;
  PageBitmap seen_;               // pages of the open epoch
};

}  // namespace holdfast
