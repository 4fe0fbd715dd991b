// Which pages of guest RAM were written since the last look.
//
// One PAGEMAP_SCAN both reports and re-protects, atomically per page, so no
// write falls between two scans. Needs a Userfault registered on the range.
// Blocks of RAM that nobody has touched yet are left alone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "guest/touched_blocks.h"
#include "send/page_run.h"

namespace holdfast {

class DirtyTracker {
 public:
  // `file`: what RAM lies on, where that tells which pages it holds. It outlives
  // the tracker.
  static Result<std::unique_ptr<DirtyTracker>> Open(pid_t pid, uint64_t address, uint64_t size,
                                                    uint32_t page_size,
                                                    std::optional<SparseFile> file = {});

  // Runs of the pages written since the last scan, ascending, disjoint, with
  // source_page = first_page. The first scan reports every page, but those that
  // the file lacks. After an error it is unknown what was reported: only a new
  // base makes up for it.
  Result<std::vector<PageRun>> Scan(WorkerPool& pool);

  // How many pages were written since the last scan, without touching protection:
  // each of them is still reported by the next one.
  Result<uint64_t> CountWritten(WorkerPool& pool) const;

  // Runs of the pages of `runs` (ascending) that were written since the last scan,
  // and perhaps of such that lie between them. Protection is not touched: each of
  // them is still reported by the next scan.
  Result<std::vector<PageRun>> WrittenAround(std::span<const PageRun> runs) const;

  // Runs of the pages present in the process, without touching protection.
  Result<std::vector<PageRun>> Present();

 private:
  DirtyTracker(Descriptor pagemap, uint64_t address, uint64_t size, uint32_t page_size,
               std::optional<SparseFile> file)
      : pagemap_(std::move(pagemap)),
        address_(address),
        size_(size),
        page_size_(page_size),
        blocks_(size / page_size, file) {}

  struct Query {
    uint64_t flags;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
  };
  Status Walk(const Query& query, uint64_t start, uint64_t end, std::vector<PageRun>& runs) const;
  Result<std::vector<PageRun>> WalkAll(const Query& query, WorkerPool& pool) const;
  Status CheckAlive() const;
  Result<std::vector<PageRun>> Held(const std::vector<TouchedBlocks::Range>& blocks) const;

  Descriptor pagemap_;
  const uint64_t address_;
  const uint64_t size_;
  const uint32_t page_size_;
  TouchedBlocks blocks_;
};

// Appends `run`, joined with the last one where they touch in both page numbers.
void AppendRun(std::vector<PageRun>& runs, const PageRun& run);

// Ascending, disjoint and not empty, as the wire wants them. A scan is not quite:
// when more regions are found than the kernel buffers at a time (512), the
// walk_end of PAGEMAP_SCAN may stay at an earlier stop although the walk was
// completed (do_pagemap_scan, fs/proc/task_mmu.c). The walk then goes over the
// rest again, and a page written in between is reported a second time.
std::vector<PageRun> Ordered(std::vector<PageRun> runs);

// Union of two ascending sets; source_page = first_page.
std::vector<PageRun> UnionOf(const std::vector<PageRun>& left, const std::vector<PageRun>& right);

// `older` with the pages of `newer` in place of its own; both ascending. A piece
// of an older run keeps its place in the source.
std::vector<PageRun> Superseded(const std::vector<PageRun>& older,
                                const std::vector<PageRun>& newer);

// `runs` without the pages of `removed`; both ascending. What stays keeps its
// place in the source.
std::vector<PageRun> Without(const std::vector<PageRun>& runs, const std::vector<PageRun>& removed);

// Cuts `runs` after so many pages; returns the rest.
std::vector<PageRun> CutAfter(std::vector<PageRun>& runs, uint64_t pages);

uint64_t PagesOf(const std::vector<PageRun>& runs);

}  // namespace holdfast
