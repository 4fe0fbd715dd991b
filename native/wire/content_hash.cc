#include "wire/content_hash.h"

#include "base/result.h"
#include "wire/content_hash_lanes.h"

namespace holdfast {
namespace {

ContentHash HashOne(const std::byte* block, size_t block_bytes) {
  uint64_t state[8];
  HashLanes(state, block_bytes, [block](size_t at) { return WordAt(block, at); });
  ContentHash hash;
  std::memcpy(hash.data(), state, sizeof hash);
  return hash;
}

}  // namespace

void HashContents(std::span<const std::byte* const> blocks, size_t block_bytes,
                  std::span<ContentHash> hashes) {
  static const HashFourFunction hash_four = Avx2HashFour();
  HF_ASSERT(block_bytes > 0 && block_bytes % kChunkBytes == 0 && hashes.size() == blocks.size());
  size_t done = 0;
  while (hash_four != nullptr && blocks.size() - done >= 4) {
    hash_four(&blocks[done], block_bytes, &hashes[done]);
    done += 4;
  }
  for (; done < blocks.size(); done++) hashes[done] = HashOne(blocks[done], block_bytes);
}

}  // namespace holdfast
