// Where the dirty pages of one epoch lie while the VM runs on.
//
// A file, mapped (staging_file.h): the copy strategies read it by address,
// sendfile and splice by descriptor. Pages lie in run order without gaps, so that a send is a few
// long stretches. Bytes may leave by reference until the backup acknowledged
// them, so a new epoch may be staged only then (DESIGN part 3, no torn pages).
//
// Memory is taken in chunks up to a bound, outside the pause where possible,
// and touched at once: a first touch during the pause would double the copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "capture/staging_file.h"
#include "send/page_run.h"

namespace holdfast {

class StagingPool {
 public:
  static Result<std::unique_ptr<StagingPool>> Create(uint64_t bytes_max,
                                                     StagingPages pages = StagingPages::kAuto);

  uint64_t bytes_max() const { return bytes_max_; }
  PageSource source() const;
  // On a file that prefers huge pages.
  bool huge() const { return huge_; }

  // Makes at least `bytes` ready (at most bytes_max). kNoSpace if memory is short.
  Status Grow(uint64_t bytes);

  // Copies the runs' pages out of `guest` to the pool's pages from `first_page`
  // on, and re-aims source_page at them. They must fit in bytes_max.
  Status Stage(const PageSource& guest, uint32_t page_size, std::vector<PageRun>& runs,
               uint64_t first_page, WorkerPool& pool);

 private:
  StagingPool(StagingFile staging, Mapping mapping, uint64_t bytes_max)
      : file_(std::move(staging.file)),
        huge_(staging.huge),
        mapping_(std::move(mapping)),
        bytes_max_(bytes_max) {}

  Descriptor file_;
  const bool huge_;
  Mapping mapping_;
  const uint64_t bytes_max_;
  uint64_t bytes_ready_ = 0;
};

}  // namespace holdfast
