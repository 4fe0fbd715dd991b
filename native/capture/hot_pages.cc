#include "capture/hot_pages.h"

#include "guest/tracker.h"

namespace holdfast {
namespace {

constexpr uint8_t kHot = 2;
constexpr uint8_t kHeatMax = 3;

}  // namespace

void HotPages::HeatUp(Page& page) {
  page.found_again = true;
  if (page.heat < kHeatMax) page.heat++;
}

void HotPages::Written(const std::vector<PageRun>& runs) {
  for (const PageRun& run : runs) {
    for (uint64_t number = run.first_page; number < run.first_page + run.pages; number++) {
      Page& page = pages_[number];
      if (page.found) {
        HeatUp(page);
      } else {
        page.found = true;
        AppendRun(found_, {number, number, 1});
      }
    }
  }
}

std::vector<PageRun> HotPages::TakeHot(std::vector<PageRun>& runs) const {
  std::vector<PageRun> hot;
  std::vector<PageRun> others;
  for (const PageRun& run : runs) {
    for (uint32_t i = 0; i < run.pages; i++) {
      const bool is_hot = pages_[run.first_page + i].heat >= kHot;
      AppendRun(is_hot ? hot : others, {run.first_page + i, run.source_page + i, 1});
    }
  }
  runs = std::move(others);
  return hot;
}

template <typename Visit>
void HotPages::ForEachFound(Visit visit) {
  for (const PageRun& run : found_) {
    for (uint64_t number = run.first_page; number < run.first_page + run.pages; number++) {
      visit(pages_[number]);
    }
  }
}

void HotPages::EndEpoch(const std::vector<PageRun>& runs) {
  if (found_.empty()) return;  // no slice: nothing was to be learnt
  for (const PageRun& run : runs) {
    for (uint64_t number = run.first_page; number < run.first_page + run.pages; number++) {
      if (pages_[number].found) HeatUp(pages_[number]);
    }
  }
  ForEachFound([](Page& page) {
    if (!page.found_again && page.heat > 0) page.heat--;
  });
  GiveUp();
}

void HotPages::GiveUp() {
  ForEachFound([](Page& page) { page.found = page.found_again = false; });
  found_.clear();
}

}  // namespace holdfast
