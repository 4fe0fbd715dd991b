#include "wire/run_table.h"

#include <cinttypes>

#include "wire/text.h"

namespace holdfast {

Result<uint64_t> CheckRuns(RunTable table, uint64_t ram_pages) {
  uint64_t total = 0;
  uint64_t next_free = 0;  // first page after the run before
  for (size_t i = 0; i < table.size(); i++) {
    const WireRun run = table[i];
    if (run.pages == 0) {
      return Error::Of(ErrorCode::kProtocol, Text("run %zu: pages is 0", i));
    }
    if (run.first_page >= ram_pages || run.pages > ram_pages - run.first_page) {
      return Error::Of(ErrorCode::kProtocol,
                       Text("run %zu: first page %" PRIu64 ", pages %" PRIu32
                            ": RAM has %" PRIu64 " pages",
                            i, run.first_page, run.pages, ram_pages));
    }
    if (run.first_page < next_free) {
      return Error::Of(ErrorCode::kProtocol,
                       Text("run %zu: first page %" PRIu64
                            " is not after the run before, which ends at %" PRIu64,
                            i, run.first_page, next_free));
    }
    next_free = run.first_page + run.pages;
    total += run.pages;
  }
  return total;
}

}  // namespace holdfast
