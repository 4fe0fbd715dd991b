// xxh3 over 32 bytes at a time: half the instructions of what every x86-64 has.

#if defined(__x86_64__)

// Before the target changes: what these headers define must fit everybody.
#include <immintrin.h>
#include <string.h>

#include <cstddef>
#include <cstdint>
#include <new>

#define XXH_VECTOR 2  // XXH_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#include "wire/digest_functions.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace holdfast {

const DigestFunctions* Avx2DigestFunctions() {
  return __builtin_cpu_supports("avx2") ? &kDigestFunctions : nullptr;
}

}  // namespace holdfast

#else

#include "wire/digest_functions.h"

namespace holdfast {
const DigestFunctions* Avx2DigestFunctions() { return nullptr; }
}  // namespace holdfast

#endif
