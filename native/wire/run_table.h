// Tables of runs: which pages a PAGES or ZERO frame is about, in a few bytes
// per run (docs/wire-protocol.md).
//
//   run  = head, and if it says so: pages - 2
//   head = distance << 1 | (pages > 1)
//
// The distance is that from the first page the run could begin with: 0 for the
// first run, for the others the page after the next (neighbours are one run).
// So every set of pages has exactly one encoding, and a decoder that insists on
// it cannot be shown unordered or overlapping runs at all. A page by itself
// costs one byte up to a distance of 63, two up to 8191.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "wire/varint.h"

namespace holdfast {

struct WireRun {
  uint64_t first_page = 0;
  uint32_t pages = 0;
};

inline constexpr size_t kRunBytesMax = 2 * kVarintBytesMax;

// Writes a table. Runs ascend, and there is a gap between them.
class RunTableWriter {
 public:
  void Add(const WireRun& run);
  void Clear();
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
  uint64_t next_first_ = 0;  // where the next run could begin
};

// Checks every byte of a table, and that its runs lie inside RAM; returns the
// sum of pages. No table of a peer is read otherwise before.
Result<uint64_t> CheckRuns(std::span<const std::byte> table, uint64_t ram_pages);

// Walks a table that CheckRuns has let through.
class RunCursor {
 public:
  explicit RunCursor(std::span<const std::byte> checked_table) : rest_(checked_table) {}
  bool Next(WireRun& run);  // false at the end

 private:
  std::span<const std::byte> rest_;
  uint64_t next_first_ = 0;
};

}  // namespace holdfast
