// Numbers at an unaligned place in a frame; little-endian, as x86 has them.
#pragma once

#include <cstddef>
#include <cstring>

namespace holdfast {

template <typename T>
void Put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

template <typename T>
T Get(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace holdfast
