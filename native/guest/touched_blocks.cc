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
  touched_.resize((pages + block_pages_ - 1) / block_pages_, !file_.has_value());
}

Result<std::vector<TouchedBlocks::Range>> TouchedBlocks::TakeNew() {
  std::vector<Range> taken;
  for (const Range& untouched : RangesThat(false)) {
    for (uint64_t page = untouched.first_page; page < untouched.end_page;) {
      const auto held = FirstHeldPage(*file_, page, untouched.end_page);
      if (!held.ok()) return held.error();
      if (held.value() == untouched.end_page) break;
      const uint64_t block = held.value() / block_pages_;
      page = std::min((block + 1) * block_pages_, pages_);
      touched_[block] = true;
      taken.push_back({block * block_pages_, page});
    }
  }
  return taken;
}

std::vector<TouchedBlocks::Range> TouchedBlocks::Touched() const { return RangesThat(true); }

Result<uint64_t> TouchedBlocks::PagesHeldOutside() const {
  auto held = Held(RangesThat(false));
  if (!held.ok()) return held.error();
  return PagesOf(held.value());
}

Result<std::vector<PageRun>> TouchedBlocks::Held(const std::vector<Range>& ranges) const {
  std::vector<PageRun> runs;
  for (const Range& range : ranges) {
    HF_TRY(AppendHeldPages(*file_, range.first_page, range.end_page, runs));
  }
  return runs;
}

std::vector<TouchedBlocks::Range> TouchedBlocks::RangesThat(bool touched) const {
  std::vector<Range> ranges;
  for (size_t block = 0; block < touched_.size(); ++block) {
    if (touched_[block] != touched) continue;
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
