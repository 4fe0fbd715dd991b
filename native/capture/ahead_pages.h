// What was staged for the coming epoch while the guest runs, slice by slice, and
// what of it still holds.
//
//   scan ─► Supersede(dirty) ─► copy to the pool from places() on ─► Staged
//        ─► send unsent() as a slice ─► Sent            … and so on, to the pause
//
// Each scan re-protects what it finds before it is copied. So a page that the
// guest writes while it is copied, and that is torn in staging and on the backup,
// is found by a later scan, at the latest by that in the pause: it is superseded,
// always. What no later scan finds was copied whole.
//
// Pure: sets of pages, and places in the staging pool. A place is not used again
// before the epoch has ended, since slices leave by reference.
#pragma once

#include <cstdint>
#include <vector>

#include "send/page_run.h"

namespace holdfast {

class AheadPages {
 public:
  struct Superseded {
    uint64_t pages = 0;
    uint64_t sent_pages = 0;  // of these
  };

  // Found written: from here on the caller answers for these pages.
  Superseded Supersede(const std::vector<PageRun>& dirty);

  // Copied to the pool, from places() on; none of them holds here already.
  void Staged(const std::vector<PageRun>& runs);

  // All that is unsent left as one slice.
  void Sent();

  // Every page that holds: whoever gives the epoch up answers for them.
  std::vector<PageRun> Pages() const;

  void Clear() { *this = {}; }

  const std::vector<PageRun>& sent() const { return sent_; }      // ascending
  const std::vector<PageRun>& unsent() const { return unsent_; }  // ascending
  uint64_t places() const { return places_; }            // of the pool, taken from its begin
  uint64_t places_sent() const { return places_sent_; }  // of these: may be read until the ACK
  uint64_t pages_sent() const { return pages_sent_; }    // superseded ones included
  uint32_t slices() const { return slices_; }            // sent

 private:
  std::vector<PageRun> sent_;
  std::vector<PageRun> unsent_;
  uint64_t places_ = 0;
  uint64_t places_sent_ = 0;
  uint64_t pages_sent_ = 0;
  uint32_t slices_ = 0;
};

}  // namespace holdfast
