// Four blocks at a time, a lane each.

#if defined(__x86_64__)

// Before the target changes: what these headers define must fit everybody.
#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "wire/content_hash.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#include "wire/content_hash_lanes.h"

namespace holdfast {
namespace {

using Lanes = uint64_t __attribute__((vector_size(32)));

void HashFour(const std::byte* const* blocks, size_t block_bytes, ContentHash* hashes) {
  Lanes state[8];
  HashLanes(state, block_bytes, [blocks](size_t at) {
    return Lanes{WordAt(blocks[0], at), WordAt(blocks[1], at), WordAt(blocks[2], at),
                 WordAt(blocks[3], at)};
  });
  for (size_t lane = 0; lane < 4; lane++) {
    const uint64_t words[2] = {state[0][lane], state[1][lane]};
    std::memcpy(hashes[lane].data(), words, sizeof words);
  }
}

}  // namespace
}  // namespace holdfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace holdfast {

HashFourFunction Avx2HashFour() { return __builtin_cpu_supports("avx2") ? &HashFour : nullptr; }

}  // namespace holdfast

#else

#include "wire/content_hash.h"

namespace holdfast {
HashFourFunction Avx2HashFour() { return nullptr; }
}  // namespace holdfast

#endif
