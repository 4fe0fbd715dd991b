// Which page goes next to a VM that runs already. Pure.
//
//   demanded     the guest waits for it: first come, first served
//   near         the rest of the block around a demanded one, the latest first:
//                what the guest touches next is likely there
//   hot          what it wrote most recently before it was stopped
//   cold         all others, in order
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "postcopy/page_set.h"
#include "send/page_run.h"

namespace holdfast {

class PageOrder {
 public:
  // Pages of `hot` that are not to be sent count for nothing.
  explicit PageOrder(PageSet pending, std::vector<PageRun> hot = {})
      : pending_(std::move(pending)), hot_(std::move(hot)) {}

  struct Portion {
    PageRun run;  // 0 pages: nothing is left
    bool demanded = false;
  };

  // One that is not pending any more has been on its way when it was asked for.
  void Demand(uint64_t page);

  // They are not pending from now on. A demanded page comes by itself.
  Portion Next(uint32_t pages_max);

  bool demanded() const { return !demanded_.empty(); }
  const PageSet& pending() const { return pending_; }

 private:
  struct Range {
    uint64_t next;
    uint64_t end;
  };
  PageRun Take(Range& range, uint32_t pages_max);
  void Near(uint64_t page);

  PageSet pending_;
  const std::vector<PageRun> hot_;
  std::deque<uint64_t> demanded_;
  std::deque<Range> near_;
  size_t hot_index_ = 0;
  uint64_t hot_done_ = 0;  // pages of that run
  uint64_t cold_next_ = 0;
};

}  // namespace holdfast
