#include "wire/digest.h"

#include "wire/digest_functions.h"

namespace holdfast {
namespace {

const DigestFunctions& Fastest() {
  static const DigestFunctions& functions =
      Avx2DigestFunctions() != nullptr ? *Avx2DigestFunctions() : kDigestFunctions;
  return functions;
}

}  // namespace

uint64_t HashBytes(std::span<const std::byte> bytes) {
  return Fastest().hash(bytes.data(), bytes.size());
}

uint64_t HashBytes(std::span<const std::byte> bytes, uint64_t seed) {
  return Fastest().hash_seeded(bytes.data(), bytes.size(), seed);
}

void Digest::Reset() { Fastest().reset(state_); }

void Digest::Update(std::span<const std::byte> bytes) {
  // xxhash 0.8.1 reads a null pointer of length 0 as an error.
  if (!bytes.empty()) Fastest().update(state_, bytes.data(), bytes.size());
}

uint64_t Digest::Value() const { return Fastest().value(state_); }

}  // namespace holdfast
