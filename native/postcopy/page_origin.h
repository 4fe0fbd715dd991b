// Where the pages of a VM come from that runs before they are there: another
// host (link_origin.h), or files of a checkpoint (file_origin.h).
//
//   faults ─► FaultServer ──Demand──► PageOrigin
//                 ▲ PageSink              │
//                 └──List, Install, Zero──┘
//
// All calls are made on the fault server's thread, in both directions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "postcopy/page_set.h"
#include "send/page_run.h"

namespace holdfast {

// What an origin tells.
class PageSink {
 public:
  virtual ~PageSink() = default;

  // Once on every connection, and before anything else: which pages there are.
  // All others are zeros, or stand where the guest sees them already. From the
  // second time on it changes nothing. Answered by what is still lacking.
  virtual Result<const PageSet*> List(const PageSet& pages) = 0;
  // Pages, whole and verified. Those that are not lacking are left as they are.
  virtual Status Install(uint64_t first_page, std::span<const std::byte> bytes, bool demanded) = 0;
  virtual Status Zero(uint64_t first_page, uint64_t pages, bool demanded) = 0;
  // Nothing comes for now; after List it goes on.
  virtual void Lost(const Error& why) = 0;
};

class PageOrigin {
 public:
  virtual ~PageOrigin() = default;

  // Readable when Take has something to do; -1: see pushing().
  virtual int fd() const = 0;
  // Take brings pages whenever it is called, as long as it has some.
  virtual bool pushing() const = 0;
  // A vCPU waits for it. Nothing is done while the origin is lost: what waits
  // is asked for again after the next List.
  virtual Status Demand(uint64_t page, PageSink& sink) = 0;
  // One small portion, so that faults are seen to in between. An error is the end.
  virtual Status Take(PageSink& sink) = 0;
  // Nothing is lacking any more. `report` goes to whoever serves.
  struct Report {
    uint64_t faults = 0;
    double p50_us = 0;
    double p99_us = 0;
    double max_us = 0;
  };
  virtual Status Complete(const Report& report) = 0;
};

}  // namespace holdfast
