// One bit per page of RAM, with runs as the unit of work. Clearing costs what
// was set, not what RAM is long: it happens once per epoch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace holdfast {

class PageBitmap {
 public:
  explicit PageBitmap(uint64_t pages)
      : words_((pages + 63) / 64), touched_((words_.size() + kBlockWords - 1) / kBlockWords) {}

  bool Test(uint64_t page) const { return (words_[page / 64] >> (page % 64) & 1) != 0; }

  // Adds the run; false if any page of it was there already.
  bool Add(uint64_t first_page, uint64_t pages) {
    uint64_t seen = 0;
    const uint64_t end = first_page + pages;
    for (uint64_t page = first_page; page < end;) {
      const uint64_t bit = page % 64;
      const uint64_t count = std::min<uint64_t>(64 - bit, end - page);
      const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << bit;
      const uint64_t word = page / 64;
      seen |= words_[word] & mask;
      words_[word] |= mask;
      Touch(word / kBlockWords);
      page += count;
    }
    return seen == 0;
  }

  // Takes the run out; false if any page of it was not there.
  bool Remove(uint64_t first_page, uint64_t pages) {
    bool all = true;
    for (uint64_t page = first_page; page < first_page + pages; page++) {
      all = all && Test(page);
      words_[page / 64] &= ~(uint64_t{1} << (page % 64));
    }
    return all;
  }

  void Clear() {
    for (const uint64_t block : blocks_) {
      const uint64_t first = block * kBlockWords;
      const uint64_t last = std::min<uint64_t>(first + kBlockWords, words_.size());
      std::fill(words_.begin() + static_cast<ptrdiff_t>(first),
                words_.begin() + static_cast<ptrdiff_t>(last), 0);
      touched_[block] = false;
    }
    blocks_.clear();
  }

 private:
  static constexpr uint64_t kBlockWords = 64;

  void Touch(uint64_t block) {
    if (touched_[block]) return;
    touched_[block] = true;
    blocks_.push_back(block);
  }

  std::vector<uint64_t> words_;
  std::vector<bool> touched_;
  std::vector<uint64_t> blocks_;
};

}  // namespace holdfast
