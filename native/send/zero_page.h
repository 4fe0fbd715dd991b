// Is a page all zero? Nearly every page that is not shows it in its first
// bytes; the rest is left to the C library's vectorised memcmp.
#pragma once

#include <cstddef>
#include <cstring>

namespace holdfast {

inline bool IsZeroPage(const std::byte* page, size_t page_size) {
  static constexpr size_t kBlock = 4096;
  alignas(64) static constexpr std::byte kZeros[kBlock] = {};
  if (std::memcmp(page, kZeros, 64) != 0) return false;
  for (size_t at = 0; at < page_size; at += kBlock) {
    if (std::memcmp(page + at, kZeros, kBlock) != 0) return false;
  }
  return true;
}

}  // namespace holdfast
