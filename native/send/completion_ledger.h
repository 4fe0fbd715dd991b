// Calls whose pages the kernel still holds, and what it reported of those it
// let go. No I/O: the error queue's and the ring's notifications end up here.
//
// As MSG_ZEROCOPY does it (Documentation/networking/msg_zerocopy.rst): ids count
// the calls that took at least one byte, in 32 bits that wrap; a notification
// names a range of them, and ranges may arrive out of order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

namespace holdfast {

class CompletionLedger {
 public:
  struct Totals {
    uint64_t completions = 0;
    uint64_t copied_completions = 0;
    uint64_t reference_bytes = 0;
    uint64_t copied_bytes = 0;
  };

  explicit CompletionLedger(uint32_t first_id = 0) : first_id_(first_id) {}

  // The id of the next call that takes a byte.
  uint32_t next_id() const { return first_id_ + static_cast<uint32_t>(calls_.size()); }

  void Sent(uint64_t bytes);

  // Calls first_id..last_id (both included, wrapping) are over. False, and
  // nothing is noted, if one of them isn't in flight.
  bool Completed(uint32_t first_id, uint32_t last_id, bool copied);

  // From the oldest call in flight to the newest: what a late notification costs in memory.
  size_t calls_in_flight() const { return calls_.size(); }
  uint64_t bytes_in_flight() const { return bytes_in_flight_; }
  const Totals& totals() const { return totals_; }

 private:
  struct Call {
    uint64_t bytes = 0;
    bool completed = false;
  };

  uint32_t first_id_;  // of calls_.front()
  std::deque<Call> calls_;
  uint64_t bytes_in_flight_ = 0;
  Totals totals_;
};

}  // namespace holdfast
