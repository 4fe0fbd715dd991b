#include "postcopy/page_order.h"

#include <algorithm>

namespace holdfast {
namespace {

// As much as a disk or a file reads ahead: on a 1 Gbit/s link it takes a millisecond.
constexpr uint64_t kBlockPages = 32;
// More blocks than vCPUs wait at a time; beyond it the oldest come with the cold.
constexpr size_t kBlocksMax = 64;

}  // namespace

void PageOrder::Demand(uint64_t page) {
  if (page >= pending_.ram_pages() || !pending_.Has(page)) return;
  // Each vCPU waits for one page, so there are few.
  if (std::find(demanded_.begin(), demanded_.end(), page) == demanded_.end()) {
    demanded_.push_back(page);
  }
}

void PageOrder::Near(uint64_t page) {
  const uint64_t block = page / kBlockPages * kBlockPages;
  near_.push_front({block, page});
  near_.push_front({page + 1, block + kBlockPages});
  while (near_.size() > 2 * kBlocksMax) near_.pop_back();
}

PageRun PageOrder::Take(Range& range, uint32_t pages_max) {
  const PageRun run = pending_.NextRun(range.next, range.end, pages_max);
  range.next = run.pages == 0 ? range.end : run.first_page + run.pages;
  for (uint64_t i = 0; i < run.pages; i++) pending_.Remove(run.first_page + i);
  return run;
}

PageOrder::Portion PageOrder::Next(uint32_t pages_max) {
  while (!demanded_.empty()) {
    const uint64_t page = demanded_.front();
    demanded_.pop_front();
    if (!pending_.Remove(page)) continue;
    Near(page);
    return {{page, page, 1}, true};
  }
  while (!near_.empty()) {
    const PageRun run = Take(near_.front(), pages_max);
    if (run.pages > 0) return {run, false};
    near_.pop_front();
  }
  while (hot_index_ < hot_.size()) {
    const PageRun& hot = hot_[hot_index_];
    Range range{hot.first_page + hot_done_, hot.first_page + hot.pages};
    const PageRun run = Take(range, pages_max);
    if (run.pages > 0) {
      hot_done_ = range.next - hot.first_page;
      return {run, false};
    }
    hot_index_++;
    hot_done_ = 0;
  }
  Range rest{cold_next_, pending_.ram_pages()};
  const PageRun run = Take(rest, pages_max);
  cold_next_ = rest.next;
  return {run, false};
}

}  // namespace holdfast
