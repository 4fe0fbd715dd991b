// Which pages a sparse file holds: tmpfs knows them by SEEK_DATA, and to ask
// fills no hole. A page that is swapped out counts as held.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "send/page_run.h"

namespace holdfast {

struct SparseFile {
  int fd;
  uint64_t offset;  // of the first page in the file
  uint32_t page_size;
};

// Appends the pages of [first, end) that exist; source_page = first_page.
Status AppendHeldPages(const SparseFile& file, uint64_t first, uint64_t end,
                       std::vector<PageRun>& runs);

// The first page of [first, end) that exists; `end` if none does.
Result<uint64_t> FirstHeldPage(const SparseFile& file, uint64_t first, uint64_t end);

}  // namespace holdfast
