// The strong hash of a block: the first 128 bits of its BLAKE2b-512 (RFC 7693).
//
// It stands for the content: two sides that find the same hash take the block for
// the same one, and what is in it may be written by the guest. So nobody must be
// able to make two blocks with one hash, which rules out xxh3. Of the cryptographic
// ones this one needs no instructions of its own (SHA-256 without them takes two to
// four times as long), and four blocks at a time fill a processor's vectors.
#pragma once

#include <array>
#include <cstddef>
#include <span>

namespace holdfast {

using ContentHash = std::array<std::byte, 16>;

// Of each of these blocks, all of `block_bytes`: a multiple of 128, not 0.
void HashContents(std::span<const std::byte* const> blocks, size_t block_bytes,
                  std::span<ContentHash> hashes);

// The same of four blocks, where the processor has the instructions; else none.
using HashFourFunction = void (*)(const std::byte* const* blocks, size_t block_bytes,
                                  ContentHash* hashes);
HashFourFunction Avx2HashFour();

}  // namespace holdfast
