// How a base round goes out: in batches, before each of which it is looked which
// of its pages were written since the round's scan. Those are left out, for the
// next round finds them dirty anyway. (Xen's live migration has done so since
// Clark et al., 2005, as `to_skip`.)
//
//   scan ─► batch ─► batch ─► look ─► batch ─► look ─► batch …
//           └ kLookAfterMs ┘
//
// Pure: the caller has the clock.
#pragma once

#include <algorithm>
#include <cstdint>

namespace holdfast {

class RoundPace {
 public:
  // So long after the scan everything is sent, however hot: else a round of hot
  // pages would end at once, and rounds without pause or use would follow, each of
  // which protects those pages anew. So a round also sends enough to measure the link.
  static constexpr double kLookAfterMs = 20;
  // What a look says should be little older than this when the pages leave.
  static constexpr double kBatchMs = 8;
  // For each stream, so that all have something to carry (send/epoch_writer.cc).
  static constexpr uint64_t kBatchBytesMin = uint64_t{512} << 10;
  static constexpr uint64_t kBatchBytesMax = uint64_t{64} << 20;
  // Of the round's time so far, all looks together: on a link so fast, and among
  // pages so scattered, that looking takes longer, it does not pay.
  static constexpr double kLooksShareMax = 1.0 / 16;

  RoundPace(uint32_t page_bytes, unsigned streams, double start_ms)
      : page_bytes_(page_bytes), bytes_min_(kBatchBytesMin * streams), start_ms_(start_ms) {}

  // Of the next batch; at least one. By the rate of all before it, once that says
  // more than how much the kernel takes without sending it.
  uint64_t BatchPages(double now_ms) const {
    const double elapsed_ms = now_ms - start_ms_;
    auto bytes = static_cast<double>(bytes_min_);
    if (elapsed_ms >= kLookAfterMs) {
      const double sent_bytes = static_cast<double>(sent_pages_) * page_bytes_;
      bytes = std::clamp<double>(sent_bytes / elapsed_ms * kBatchMs, bytes, kBatchBytesMax);
    }
    return std::max<uint64_t>(1, static_cast<uint64_t>(bytes) / page_bytes_);
  }

  bool LooksNow(double now_ms) const {
    const double elapsed_ms = now_ms - start_ms_;
    return elapsed_ms >= kLookAfterMs && look_ms_ <= kLooksShareMax * elapsed_ms;
  }

  void Looked(double ms) { look_ms_ += ms; }
  void Sent(uint64_t pages) { sent_pages_ += pages; }

  double look_ms() const { return look_ms_; }

 private:
  const uint32_t page_bytes_;
  const uint64_t bytes_min_;
  const double start_ms_;
  uint64_t sent_pages_ = 0;
  double look_ms_ = 0;
};

}  // namespace holdfast
