#include "send/wanted_runs.h"

#include <algorithm>
#include <cinttypes>

#include "wire/run_table.h"
#include "wire/text.h"

namespace holdfast {

Result<std::vector<PageRun>> WantedRuns(std::span<const std::byte> table,
                                        std::span<const PageRun> sent) {
  std::vector<PageRun> found;
  WireRun wanted;
  for (RunCursor runs(table); runs.Next(wanted);) {
    while (wanted.pages > 0) {
      while (!sent.empty() && sent[0].first_page + sent[0].pages <= wanted.first_page) {
        sent = sent.subspan(1);
      }
      if (sent.empty() || sent[0].first_page > wanted.first_page) {
        return Error::Of(ErrorCode::kProtocol,
                         Text("WANTED frame: page %" PRIu64 " was not sent", wanted.first_page));
      }
      const PageRun& run = sent[0];
      const uint64_t skipped = wanted.first_page - run.first_page;
      const auto pages =
          static_cast<uint32_t>(std::min<uint64_t>(wanted.pages, run.pages - skipped));
      found.push_back({wanted.first_page, run.source_page + skipped, pages});
      wanted = {wanted.first_page + pages, wanted.pages - pages};
    }
  }
  return found;
}

}  // namespace holdfast
