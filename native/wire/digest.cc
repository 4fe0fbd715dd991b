#include "wire/digest.h"

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

#include <new>

namespace holdfast {

static_assert(sizeof(XXH3_state_t) == 576 && alignof(XXH3_state_t) == 64);

namespace {
XXH3_state_t* State(std::byte* bytes) {
  return std::launder(reinterpret_cast<XXH3_state_t*>(bytes));
}
const XXH3_state_t* State(const std::byte* bytes) {
  return std::launder(reinterpret_cast<const XXH3_state_t*>(bytes));
}
}  // namespace

uint64_t HashBytes(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

void Digest::Reset() { XXH3_64bits_reset(new (state_) XXH3_state_t); }

void Digest::Update(std::span<const std::byte> bytes) {
  // xxhash 0.8.1 reads a null pointer of length 0 as an error.
  if (!bytes.empty()) XXH3_64bits_update(State(state_), bytes.data(), bytes.size());
}

uint64_t Digest::Value() const { return XXH3_64bits_digest(State(state_)); }

}  // namespace holdfast
