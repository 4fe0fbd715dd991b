#include "send/completion_ledger.h"

#include <algorithm>

namespace holdfast {

void CompletionLedger::Sent(uint64_t bytes) {
  calls_.push_back({bytes, false});
  bytes_in_flight_ += bytes;
}

bool CompletionLedger::Completed(uint32_t first_id, uint32_t last_id, bool copied) {
  // Distances, not ids, are compared: they are right across the wrap.
  const uint32_t begin = first_id - first_id_;
  const uint32_t last = last_id - first_id_;
  if (begin > last || last >= calls_.size()) return false;
  const auto from = calls_.begin() + begin;
  const auto to = calls_.begin() + last + 1;
  if (std::any_of(from, to, [](const Call& call) { return call.completed; })) return false;
  for (auto call = from; call != to; ++call) {
    call->completed = true;
    bytes_in_flight_ -= call->bytes;
    totals_.completions++;
    totals_.copied_completions += copied ? 1 : 0;
    (copied ? totals_.copied_bytes : totals_.reference_bytes) += call->bytes;
  }
  while (!calls_.empty() && calls_.front().completed) {
    calls_.pop_front();
    first_id_++;
  }
  return true;
}

}  // namespace holdfast
