// Tables of runs: 12 bytes each, first page (u64) and number of pages (u32),
// ascending, disjoint, inside RAM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/result.h"
#include "wire/frame.h"

namespace holdfast {

struct WireRun {
  uint64_t first_page = 0;
  uint32_t pages = 0;
};

// A view of table bytes whose length is a multiple of kRunBytes. The bytes need
// not be aligned, and the runs are only as good as CheckRuns found them.
class RunTable {
 public:
  explicit RunTable(std::span<const std::byte> bytes) : bytes_(bytes) {}
  size_t size() const { return bytes_.size() / kRunBytes; }
  WireRun operator[](size_t index) const {
    WireRun run;
    const std::byte* at = bytes_.data() + index * kRunBytes;
    std::memcpy(&run.first_page, at, sizeof run.first_page);
    std::memcpy(&run.pages, at + sizeof run.first_page, sizeof run.pages);
    return run;
  }

 private:
  std::span<const std::byte> bytes_;
};

inline void EncodeRun(std::byte* at, const WireRun& run) {
  std::memcpy(at, &run.first_page, sizeof run.first_page);
  std::memcpy(at + sizeof run.first_page, &run.pages, sizeof run.pages);
}

// Checks every run against its predecessor and against RAM; returns the sum of pages.
Result<uint64_t> CheckRuns(RunTable table, uint64_t ram_pages);

}  // namespace holdfast
