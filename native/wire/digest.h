// xxh3-64, streaming and at once. The library's header stays in digest.cc: it
// is large, and only its state's size matters here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace holdfast {

uint64_t HashBytes(std::span<const std::byte> bytes);
uint64_t HashBytes(std::span<const std::byte> bytes, uint64_t seed);

class Digest {
 public:
  Digest() { Reset(); }
  void Reset();
  void Update(std::span<const std::byte> bytes);
  uint64_t Value() const;

 private:
  alignas(64) std::byte state_[576];
};

}  // namespace holdfast
