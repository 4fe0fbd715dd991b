// Copies one 4 KiB page while fetching the next one into the cache.
//
// Dirty pages lie scattered, and the processor's own prefetcher stops at a
// page's end, so that a plain memcpy waits for memory at the start of each; and
// what is written has to be fetched first as well, so that too is asked for
// ahead. 4,500 cold pages: memcpy 4.1 ms, the source ahead 3.4, both ahead 2.8;
// rep movsb 3.8, non-temporal stores 3.9, AVX2 and AVX-512 as here.
#pragma once

#include <emmintrin.h>

#include <cstddef>

namespace holdfast {

inline constexpr size_t kCopyPageBytes = 4096;
// Of 256 bytes to two pages all distances but the shortest did as well.
inline constexpr size_t kTargetAheadBytes = 2048;

// All three are page-aligned; `next` is only a hint and must be mapped memory
// that exists, since it is about to be read anyway. Pages are taken to be
// written one behind the other; where that ends, a hint goes astray unharmed.
inline void CopyPage(std::byte* target, const std::byte* source, const std::byte* next) {
  auto* to = reinterpret_cast<__m128i*>(target);
  const auto* from = reinterpret_cast<const __m128i*>(source);
  constexpr size_t kCacheLineBytes = 64;
  for (size_t at = 0; at < kCopyPageBytes; at += kCacheLineBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(next + at), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(target + at + kTargetAheadBytes), _MM_HINT_T0);
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
