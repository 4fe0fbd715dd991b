// Whether to go on asking for zero copy on this connection. Where the kernel
// copies anyway (loopback, a tap or veth to this host, a NIC without
// scatter-gather) pinning pages and completions are work for nothing.
//
//   asking ── kCopiedMax completions in a row say "copied", or refused ──► plain
//     ▲                                                                      │
//     └── after so many bytes; once more "copied" is enough then ────────────┘
//
// Routes change, so it is asked again, each time after twice as many bytes, up
// to a limit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "send/completion_ledger.h"

namespace holdfast {

class ZeroCopyPolicy {
 public:
  static constexpr uint64_t kCopiedMax = 32;
  static constexpr uint64_t kPlainBytesFirst = uint64_t{64} << 20;
  static constexpr uint64_t kPlainBytesMax = uint64_t{4} << 30;

  bool asking() const { return plain_bytes_left_ == 0; }
  uint64_t fallbacks() const { return fallbacks_; }

  // The kernel's reports so far.
  void Observe(const CompletionLedger::Totals& totals) {
    const uint64_t copied = totals.copied_completions - seen_.copied_completions;
    const uint64_t by_reference = totals.completions - seen_.completions - copied;
    seen_ = totals;
    if (by_reference > 0) {
      copied_in_row_ = 0;
      plain_bytes_next_ = kPlainBytesFirst;
    }
    copied_in_row_ += copied;
    if (copied > 0 && asking() && copied_in_row_ >= kCopiedMax) FallBack();
  }

  // The kernel had no buffers or no memory to pin left, although nothing was in flight.
  void Refused() {
    if (asking()) FallBack();
  }

  void SentPlain(uint64_t bytes) {
    plain_bytes_left_ -= std::min(plain_bytes_left_, bytes);
  }

 private:
  void FallBack() {
    fallbacks_++;
    plain_bytes_left_ = plain_bytes_next_;
    plain_bytes_next_ = std::min(2 * plain_bytes_next_, kPlainBytesMax);
    copied_in_row_ = kCopiedMax - 1;
  }

  CompletionLedger::Totals seen_;
  uint64_t copied_in_row_ = 0;
  uint64_t plain_bytes_left_ = 0;  // to be sent before it is asked again
  uint64_t plain_bytes_next_ = kPlainBytesFirst;
  uint64_t fallbacks_ = 0;
};

}  // namespace holdfast
