// Memory for one epoch that is arriving, or that is committed and not yet
// applied: page bytes as they come, and the tables that say where they belong.
// Address space is reserved for the largest epoch allowed, memory is taken as
// bytes come, in steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

class EpochStaging {
 public:
  // One PAGES or ZERO frame. A zero segment has no page bytes.
  struct Segment {
    bool zero = false;
    uint32_t slice = 0;
    size_t table_offset = 0;
    size_t table_bytes = 0;
    size_t pages_offset = 0;
  };

  static Result<EpochStaging> Reserve(uint64_t bytes_max);

  // Place for the page bytes of a frame; they may arrive before it is known
  // what they are, and streams fill theirs side by side. kNoSpace if the kernel
  // gives no more memory.
  Result<std::span<std::byte>> Place(uint64_t bytes);
  // What a frame's table says about its place, which is empty in a ZERO frame.
  void AddSegment(uint32_t slice, std::span<const std::byte> table,
                  std::span<const std::byte> pages);
  // A page's content is that of its latest slice, but streams are in no order
  // among each other: to be called once all has come, before it is applied.
  void OrderBySlice();

  std::span<const Segment> segments() const { return segments_; }
  std::span<const std::byte> table(const Segment& segment) const {
    return std::span(tables_).subspan(segment.table_offset, segment.table_bytes);
  }
  const std::byte* pages(const Segment& segment) const {
    return arena_.data() + segment.pages_offset;
  }

  uint64_t used_bytes() const { return used_; }
  // What may be resident: the most that was used since the last trim.
  uint64_t resident_bytes() const { return resident_; }

  void Clear();                    // keeps the memory for the next epoch
  void Trim(uint64_t keep_bytes);  // gives memory beyond it back; used up to there at most

 private:
  explicit EpochStaging(Mapping arena) : arena_(std::move(arena)) {}

  Mapping arena_;
  uint64_t usable_ = 0;  // readable and writable so far
  uint64_t used_ = 0;
  uint64_t resident_ = 0;
  std::vector<std::byte> tables_;
  std::vector<Segment> segments_;
};

}  // namespace holdfast
