// xxh3 as this file's includer may compile it: each instruction set gets a copy
// of its own, chosen at run time. The digest and its state do not depend on it.
//
// Includers define XXH_VECTOR and the target beforehand, and include this once.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace holdfast {

struct DigestFunctions {
  void (*reset)(std::byte* state);
  void (*update)(std::byte* state, const std::byte* bytes, size_t count);
  uint64_t (*value)(const std::byte* state);
  uint64_t (*hash)(const std::byte* bytes, size_t count);
  uint64_t (*hash_seeded)(const std::byte* bytes, size_t count, uint64_t seed);
};

// Null on processors without it.
const DigestFunctions* Avx2DigestFunctions();

namespace {

static_assert(sizeof(XXH3_state_t) == 576 && alignof(XXH3_state_t) == 64);

constexpr DigestFunctions kDigestFunctions = {
    [](std::byte* state) { XXH3_64bits_reset(new (state) XXH3_state_t); },
    [](std::byte* state, const std::byte* bytes, size_t count) {
      XXH3_64bits_update(std::launder(reinterpret_cast<XXH3_state_t*>(state)), bytes, count);
    },
    [](const std::byte* state) -> uint64_t {
      return XXH3_64bits_digest(std::launder(reinterpret_cast<const XXH3_state_t*>(state)));
    },
    [](const std::byte* bytes, size_t count) -> uint64_t { return XXH3_64bits(bytes, count); },
    [](const std::byte* bytes, size_t count, uint64_t seed) -> uint64_t {
      return XXH3_64bits_withSeed(bytes, count, seed);
    },
};

}  // namespace
}  // namespace holdfast
