// BLAKE2b over as many blocks of one length as `Word` has lanes. Includers choose
// the instruction set, so everything here is theirs alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "wire/content_hash.h"

namespace holdfast {
namespace {

constexpr size_t kChunkBytes = 128;

constexpr uint64_t kInitial[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

// A digest of 64 bytes, no key: the parameter block's first word.
constexpr uint64_t kParameters = 0x01010040;

constexpr uint8_t kOrder[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

template <typename Word>
inline __attribute__((always_inline)) Word Rotated(Word word, int bits) {
  return (word >> bits) | (word << (64 - bits));
}

template <typename Word>
inline __attribute__((always_inline)) void Mix(Word* v, int a, int b, int c, int d, Word x,
                                               Word y) {
  v[a] = v[a] + v[b] + x;
  v[d] = Rotated(v[d] ^ v[a], 32);
  v[c] = v[c] + v[d];
  v[b] = Rotated(v[b] ^ v[c], 24);
  v[a] = v[a] + v[b] + y;
  v[d] = Rotated(v[d] ^ v[a], 16);
  v[c] = v[c] + v[d];
  v[b] = Rotated(v[b] ^ v[c], 63);
}

template <typename Word>
inline void Compress(Word* state, const Word* message, uint64_t bytes_so_far, bool last) {
  Word v[16];
  for (int i = 0; i < 8; i++) v[i] = state[i];
  for (int i = 0; i < 8; i++) v[8 + i] = Word{} + kInitial[i];
  v[12] ^= Word{} + bytes_so_far;
  if (last) v[14] = ~v[14];
#pragma GCC unroll 12
  for (int round = 0; round < 12; round++) {
    const uint8_t* m = kOrder[round];
    Mix(v, 0, 4, 8, 12, message[m[0]], message[m[1]]);
    Mix(v, 1, 5, 9, 13, message[m[2]], message[m[3]]);
    Mix(v, 2, 6, 10, 14, message[m[4]], message[m[5]]);
    Mix(v, 3, 7, 11, 15, message[m[6]], message[m[7]]);
    Mix(v, 0, 5, 10, 15, message[m[8]], message[m[9]]);
    Mix(v, 1, 6, 11, 12, message[m[10]], message[m[11]]);
    Mix(v, 2, 7, 8, 13, message[m[12]], message[m[13]]);
    Mix(v, 3, 4, 9, 14, message[m[14]], message[m[15]]);
  }
  for (int i = 0; i < 8; i++) state[i] ^= v[i] ^ v[8 + i];
}

// `load(word)`: that word of each lane's block; `store(lane…)` is the caller's.
template <typename Word, typename Load>
inline void HashLanes(Word* state, size_t block_bytes, Load load) {
  for (int i = 0; i < 8; i++) state[i] = Word{} + kInitial[i];
  state[0] ^= Word{} + kParameters;
  for (size_t at = 0; at < block_bytes; at += kChunkBytes) {
    Word message[16];
    for (size_t i = 0; i < 16; i++) message[i] = load(at + i * sizeof(uint64_t));
    Compress(state, message, at + kChunkBytes, at + kChunkBytes == block_bytes);
  }
}

inline uint64_t WordAt(const std::byte* block, size_t at) {
  uint64_t word;
  std::memcpy(&word, block + at, sizeof word);
  return word;
}

}  // namespace
}  // namespace holdfast
