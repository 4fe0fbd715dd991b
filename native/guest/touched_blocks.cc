#include "guest/touched_blocks.h"

#include <algorithm>

#include "guest/tracker.h"

namespace holdfast {
namespace {

constexpr uint64_t kPageTablePages = 512;
// Each range is a call of its own, of some 3 microseconds: with these at most
// 128 of them, whatever of RAM is touched.
constexpr uint64_t kBlocksMax = 256;

}  // namespace

TouchedBlocks::TouchedBlocks(uint64_t pages, std::optional<SparseFile> file)
    : pages_(pages), file_(file) {
  const uint64_t tables = (pages + kPageTablePages - 1) / kPageTablePages;
  block_pages_ = (tables + kBlocksMax - 1) / kBlocksMax * kPageTablePages;
  taken_.resize((pages + block_pages_ - 1) / block_pages_, !file_.has_value());
}

Result<std::vector<TouchedBlocks::Range>> TouchedBlocks::New() const {
  std::vector<Range> touched;
  for (const Range& rest : RangesThat(false)) {
    for (uint64_t page = rest.first_page; page < rest.end_page;) {
      const auto held = FirstHeldPage(*file_, page, rest.end_page);
      if (!held.ok()) return held.error();
      if (held.value() == rest.end_page) break;
      const uint64_t block = held.value() / block_pages_;
      page = std::min((block + 1) * block_pages_, pages_);
      touched.push_back({block * block_pages_, page});
    }
  }
  return touched;
}

void TouchedBlocks::Take(const std::vector<Range>& touched) {
  for (const Range& range : touched) taken_[range.first_page / block_pages_] = true;
}

std::vector<TouchedBlocks::Range> TouchedBlocks::Taken() const { return RangesThat(true); }

// Never by SEEK_HOLE: it goes on to the end of the data, beyond the range, page
// by page, which may be gigabytes.
Status TouchedBlocks::AppendHeld(const Range& range, const std::vector<PageRun>& mapped,
                                 std::vector<PageRun>& runs) const {
  const auto add_unmapped = [&](uint64_t page, uint64_t end) -> Status {
    while (page < end) {
      const auto held = FirstHeldPage(*file_, page, end);
      if (!held.ok()) return held.error();
      if (held.value() < end) AppendRun(runs, {held.value(), held.value(), 1});
      page = held.value() + 1;
    }
    return {};
  };
  uint64_t page = range.first_page;
  for (const PageRun& run : mapped) {
    HF_TRY(add_unmapped(page, run.first_page));
    AppendRun(runs, run);
    page = run.first_page + run.pages;
  }
  return add_unmapped(page, range.end_page);
}

std::vector<TouchedBlocks::Range> TouchedBlocks::RangesThat(bool taken) const {
  std::vector<Range> ranges;
  for (size_t block = 0; block < taken_.size(); ++block) {
    if (taken_[block] != taken) continue;
    const uint64_t first = block * block_pages_;
    const uint64_t end = std::min(first + block_pages_, pages_);
    if (!ranges.empty() && ranges.back().end_page == first) {
      ranges.back().end_page = end;
    } else {
      ranges.push_back({first, end});
    }
  }
  return ranges;
}

}  // namespace holdfast
