// Numbers in tables and deltas: 7 bits a byte, low ones first, the top bit says
// that more follow; the last byte is not 0 but in the number 0. So each number
// has one encoding; 8 bytes hold the largest, 2^56 - 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace holdfast {

inline constexpr size_t kVarintBytesMax = 8;

inline void PutVarint(std::vector<std::byte>& to, uint64_t value) {
  HF_ASSERT(value >> (7 * kVarintBytesMax) == 0);
  while (value > 0x7f) {
    to.push_back(static_cast<std::byte>(value | 0x80));
    value >>= 7;
  }
  to.push_back(static_cast<std::byte>(value));
}

// Null, or what is wrong with the number at the front of `rest`.
inline const char* TakeVarint(std::span<const std::byte>& rest, uint64_t& value) {
  value = 0;
  for (size_t i = 0; i < kVarintBytesMax; i++) {
    if (i == rest.size()) return "ends within a number";
    const auto byte = std::to_integer<uint64_t>(rest[i]);
    value |= (byte & 0x7f) << (7 * i);
    if ((byte & 0x80) != 0) continue;
    if (byte == 0 && i > 0) return "has a number that is longer than need be";
    rest = rest.subspan(i + 1);
    return nullptr;
  }
  return "has a number of more than 8 bytes";
}

}  // namespace holdfast
