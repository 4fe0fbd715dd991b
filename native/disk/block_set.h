// A set of blocks of a disk (kDiskBlockBytes each), a bit for each: what both
// sides' maps have marked, together.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "wire/disk_frame.h"

namespace holdfast {

class BlockSet {
 public:
  explicit BlockSet(uint64_t image_bytes)
      : blocks_(DiskBlocks(image_bytes)), words_((blocks_ + 63) / 64) {}

  void Add(uint64_t first, uint64_t count) {
    HF_ASSERT(count <= blocks_ && first <= blocks_ - count);
    for (uint64_t block = first; block < first + count; block++) {
      words_[block / 64] |= uint64_t{1} << (block % 64);
    }
  }

  bool Has(uint64_t block) const { return (words_[block / 64] >> (block % 64) & 1) != 0; }

  // The first block from `from` on that is in the set, or is not; blocks() if none is.
  uint64_t NextIn(uint64_t from) const { return Next(from, 0); }
  uint64_t NextOut(uint64_t from) const { return Next(from, ~uint64_t{0}); }

  uint64_t blocks() const { return blocks_; }
  uint64_t count() const {
    uint64_t count = 0;
    for (const uint64_t word : words_) count += static_cast<uint64_t>(std::popcount(word));
    return count;
  }

 private:
  uint64_t Next(uint64_t from, uint64_t flip) const {
    while (from < blocks_) {
      const uint64_t rest = (words_[from / 64] ^ flip) >> (from % 64);
      if (rest != 0) {
        from += static_cast<uint64_t>(std::countr_zero(rest));
        break;
      }
      from = (from / 64 + 1) * 64;
    }
    return from < blocks_ ? from : blocks_;
  }

  uint64_t blocks_;
  std::vector<uint64_t> words_;
};

}  // namespace holdfast
