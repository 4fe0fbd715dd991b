// Frames of the page stream, of a VM that runs before its memory is there:
// bodies (docs/wire-protocol.md, "Page stream").
//
//   source                                                    destination
//   { PAGE_LIST }           ──►   the pages that are still to come
//                           ◄──   { PAGE_LACKS }: those that it lacks
//                           ◄──   PAGE_DEMAND: a vCPU waits for this one
//   { PAGE_DATA | PAGE_ZERO } ─►  demanded pages first, then all others
//                           ◄──   PAGES_HAVE: nothing is lacking any more
//
// Pure functions over spans, as in frame.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "send/page_run.h"
#include "wire/frame.h"

namespace holdfast {

// Page bytes of one PAGE_DATA; at least one page of any size that is tracked.
inline constexpr uint64_t kPageDataBytesMax = uint64_t{2} << 20;

// Of PAGE_LIST and PAGE_LACKS: over all frames of the list, which ends when so
// many pages have come. A list of none is one frame without a table.
struct PageListBody {
  static constexpr size_t kBytes = 8;
  uint64_t pages = 0;
};

// Whole frames, as many as the tables need.
std::vector<std::byte> EncodePageList(FrameType type, std::span<const PageRun> runs);
PageListBody DecodePageList(std::span<const std::byte, PageListBody::kBytes> bytes);

struct PageDemandBody {
  static constexpr size_t kBytes = 8;
  uint64_t page = 0;
};
std::array<std::byte, PageDemandBody::kBytes> EncodePageDemand(const PageDemandBody& demand);
PageDemandBody DecodePageDemand(std::span<const std::byte, PageDemandBody::kBytes> bytes);

// In front of the pages of PAGE_DATA; all of PAGE_ZERO.
struct PageDataBody {
  static constexpr size_t kBytes = 24;
  uint64_t first_page = 0;
  uint32_t pages = 0;
  bool demanded = false;
  uint64_t digest = 0;  // xxh3-64 of the pages; 0 in PAGE_ZERO
};
std::array<std::byte, PageDataBody::kBytes> EncodePageData(const PageDataBody& data);
PageDataBody DecodePageData(std::span<const std::byte, PageDataBody::kBytes> bytes);

// What the faults have cost, in microseconds.
struct PagesHaveBody {
  static constexpr size_t kBytes = 32;
  uint64_t faults = 0;
  uint64_t p50_us = 0;
  uint64_t p99_us = 0;
  uint64_t max_us = 0;
};
std::array<std::byte, PagesHaveBody::kBytes> EncodePagesHave(const PagesHaveBody& have);
PagesHaveBody DecodePagesHave(std::span<const std::byte, PagesHaveBody::kBytes> bytes);

// A list as its frames come.
class PageListReader {
 public:
  explicit PageListReader(uint64_t ram_pages) : ram_pages_(ram_pages) {}

  // True: it is whole, and `runs` has it.
  Result<bool> Add(std::span<const std::byte> table, const PageListBody& body);
  std::vector<PageRun> Take();

 private:
  uint64_t ram_pages_;
  uint64_t pages_ = 0;
  std::vector<PageRun> runs_;
};

}  // namespace holdfast
