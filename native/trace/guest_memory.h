// A guest's physical memory, read out of its RAM file. By read: it fills no
// hole of the file, and a file that shrank is an error and no signal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/descriptor.h"

namespace holdfast {

// Guest-physical [start, start + size) lies at this offset of the file.
struct PhysicalRange {
  uint64_t start = 0;
  uint64_t size = 0;
  uint64_t file_offset = 0;
};

class GuestMemory {
 public:
  GuestMemory(Descriptor file, std::vector<PhysicalRange> ranges)
      : file_(std::move(file)), ranges_(std::move(ranges)) {}

  // False: not all of it is RAM, or it cannot be read.
  bool Read(uint64_t physical, void* into, size_t size) const;

  template <typename T>
  bool Read(uint64_t physical, T& value) const {
    return Read(physical, &value, sizeof value);
  }

  // Up to the first NUL or newline, at most `size` bytes; empty if there is nothing.
  std::string Text(uint64_t physical, size_t size) const;

  // One past the last byte of RAM.
  uint64_t end() const;

 private:
  Descriptor file_;
  std::vector<PhysicalRange> ranges_;
};

}  // namespace holdfast
