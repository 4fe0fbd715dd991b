// Guest RAM as we see it: the file, and a read-only mapping of it.
//
// Never reads a hole: on tmpfs even a read fault allocates the page, and the
// guest's untouched memory would become real memory.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "guest/ram.h"
#include "guest/sparse_file.h"
#include "guest/tracker.h"
#include "send/page_run.h"

namespace holdfast {

class RamView {
 public:
  static Result<std::unique_ptr<RamView>> Open(pid_t pid, const RamMapping& located,
                                               uint64_t address, uint64_t size,
                                               uint64_t file_offset);

  PageSource source() const;
  // None where the file does not tell which pages it holds.
  std::optional<SparseFile> sparse_file() const;
  uint32_t page_size() const { return page_size_; }
  uint64_t size() const { return mapping_.size(); }

  // The pages that exist, by SEEK_DATA; on hugetlbfs, which lacks it, at least
  // those that are not all zero.
  Result<std::vector<PageRun>> Populated(DirtyTracker& tracker) const;

  // Maps existing pages in one go instead of fault by fault.
  void Prefault(const PageRun& run) const;

 private:
  RamView(Descriptor file, Mapping mapping, uint64_t file_offset, uint32_t page_size)
      : file_(std::move(file)),
        mapping_(std::move(mapping)),
        file_offset_(file_offset),
        page_size_(page_size) {}

  Result<std::vector<PageRun>> PopulatedOnTmpfs() const;
  Result<std::vector<PageRun>> PopulatedOnHugetlbfs(DirtyTracker& tracker) const;
  Result<bool> HoldsData(uint64_t page) const;

  Descriptor file_;
  Mapping mapping_;
  const uint64_t file_offset_;
  const uint32_t page_size_;
};

}  // namespace holdfast
