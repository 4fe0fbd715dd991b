// A set of pages of guest RAM: one bit each, and how many there are.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "send/page_run.h"

namespace holdfast {

class PageSet {
 public:
  explicit PageSet(uint64_t ram_pages) : ram_pages_(ram_pages), words_((ram_pages + 63) / 64) {}
  PageSet(uint64_t ram_pages, std::span<const PageRun> runs) : PageSet(ram_pages) {
    for (const PageRun& run : runs) Add(run.first_page, run.pages);
  }

  uint64_t ram_pages() const { return ram_pages_; }
  uint64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  bool Has(uint64_t page) const { return (words_[page / 64] >> (page % 64) & 1) != 0; }

  void Add(uint64_t first_page, uint64_t pages) {
    for (uint64_t page = first_page; page < first_page + pages; page++) {
      if (Has(page)) continue;
      words_[page / 64] |= uint64_t{1} << (page % 64);
      size_++;
    }
  }

  // False: it was not in it.
  bool Remove(uint64_t page) {
    if (!Has(page)) return false;
    words_[page / 64] &= ~(uint64_t{1} << (page % 64));
    size_--;
    return true;
  }

  // The first run of pages in [from, end), cut after `pages_max`; of 0 pages: there is none.
  PageRun NextRun(uint64_t from, uint64_t end, uint32_t pages_max) const {
    end = std::min(end, ram_pages_);
    const uint64_t first = Next(from, end);
    if (first >= end) return {};
    uint64_t last = first + 1;
    while (last < end && last - first < pages_max && Has(last)) last++;
    return {first, first, static_cast<uint32_t>(last - first)};
  }

  std::vector<PageRun> Runs() const {
    std::vector<PageRun> runs;
    constexpr uint32_t kRunPagesMax = 1u << 30;
    for (uint64_t from = 0;;) {
      const PageRun run = NextRun(from, ram_pages_, kRunPagesMax);
      if (run.pages == 0) return runs;
      runs.push_back(run);
      from = run.first_page + run.pages;
    }
  }

 private:
  // The first page at or after `from`; `end` or more: none before it.
  uint64_t Next(uint64_t from, uint64_t end) const {
    if (from >= end) return end;
    uint64_t word = from / 64;
    uint64_t bits = words_[word] & (~uint64_t{0} << (from % 64));
    const uint64_t words_end = (end + 63) / 64;
    while (bits == 0) {
      if (++word >= words_end) return end;
      bits = words_[word];
    }
    return word * 64 + static_cast<uint64_t>(std::countr_zero(bits));
  }

  const uint64_t ram_pages_;
  std::vector<uint64_t> words_;
  uint64_t size_ = 0;
};

}  // namespace holdfast
