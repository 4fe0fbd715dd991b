// Which pages are written so often that copying and sending them ahead of the
// pause is in vain: they are left for it.
//
//   slice, slice…    Written: what the scan found. A page found again heats up
//   pause            EndEpoch: the same, and pages found only once cool down
//
// A page is hot that was found again twice, and no longer once it was found only
// once in up to two epochs. Pure; one byte per page of RAM, and work in
// proportion to what was written.
#pragma once

#include <cstdint>
#include <vector>

#include "send/page_run.h"

namespace holdfast {

class HotPages {
 public:
  explicit HotPages(uint64_t ram_pages) : pages_(ram_pages) {}

  // Found written by the scan of a slice.
  void Written(const std::vector<PageRun>& runs);

  // Takes the hot ones out of `runs`, which are ascending.
  std::vector<PageRun> TakeHot(std::vector<PageRun>& runs) const;

  // Found written by the scan in the pause.
  void EndEpoch(const std::vector<PageRun>& runs);

  // The epoch was given up: nothing is learnt of its end.
  void GiveUp();

 private:
  struct Page {
    uint8_t heat : 2 = 0;
    bool found : 1 = false;  // in a slice of this epoch
    bool found_again : 1 = false;
  };
  static_assert(sizeof(Page) == 1);

  static void HeatUp(Page& page);
  template <typename Visit>
  void ForEachFound(Visit visit);

  std::vector<Page> pages_;
  std::vector<PageRun> found_;  // in the slices of this epoch
};

}  // namespace holdfast
