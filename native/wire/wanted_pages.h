// Pages of an epoch or a round that came as references and were not found on the
// disk: which are still to be asked for, which have been, and which of these have
// come. Pure.
//
//   Want… ─► Ask (table of the next WANTED frame) ─► Came… ─► complete ─► Ask …
//                                                      └── nothing left: whole
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "wire/page_bitmap.h"
#include "wire/run_table.h"

namespace holdfast {

class WantedPages {
 public:
  explicit WantedPages(uint64_t ram_pages) : asked_(ram_pages) {}

  // Each page once.
  void Want(const WireRun& run);
  // Nothing is to be asked for, or awaited.
  bool empty() const { return wanted_.empty() && missing_ == 0; }

  // All that was asked for before has come. The table is good until the next call.
  std::span<const std::byte> Ask();
  // False: not all of the run was asked for, or some of it has come before.
  bool Came(const WireRun& run);
  // How much of what was asked for has not come.
  uint64_t missing_pages() const { return missing_; }

  void Clear();

 private:
  std::vector<WireRun> wanted_;  // in no order, and not asked for yet
  PageBitmap asked_;             // and not come yet
  uint64_t missing_ = 0;
  RunTableWriter table_;
};

}  // namespace holdfast
