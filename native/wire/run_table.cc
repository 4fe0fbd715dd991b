#include "wire/run_table.h"

#include <cinttypes>
#include <limits>

#include "wire/text.h"

namespace holdfast {
namespace {

constexpr uint32_t kRunPagesMax = std::numeric_limits<uint32_t>::max();

// What a run is by the numbers in the table, before it is compared with RAM:
// 2^56 is the bound of each, so that no sum of them overflows.
struct RawRun {
  uint64_t first_page = 0;
  uint64_t pages = 0;
};

const char* TakeRun(std::span<const std::byte>& rest, uint64_t& next_first, RawRun& run) {
  uint64_t head = 0;
  if (const char* wrong = TakeVarint(rest, head)) return wrong;
  run = {next_first + (head >> 1), 1};
  if ((head & 1) != 0) {
    uint64_t beyond_two = 0;
    if (const char* wrong = TakeVarint(rest, beyond_two)) return wrong;
    run.pages = beyond_two + 2;
  }
  next_first = run.first_page + run.pages + 1;
  return nullptr;
}

}  // namespace

void RunTableWriter::Add(const WireRun& run) {
  HF_ASSERT(run.pages > 0 && run.first_page >= next_first_);
  const uint64_t distance = run.first_page - next_first_;
  PutVarint(bytes_, distance << 1 | (run.pages > 1 ? 1 : 0));
  if (run.pages > 1) PutVarint(bytes_, run.pages - 2);
  next_first_ = run.first_page + run.pages + 1;
}

void RunTableWriter::Clear() {
  bytes_.clear();
  next_first_ = 0;
}

Result<uint64_t> CheckRuns(std::span<const std::byte> table, uint64_t ram_pages) {
  uint64_t total = 0;
  uint64_t next_first = 0;
  for (size_t index = 0; !table.empty(); index++) {
    RawRun run;
    if (const char* wrong = TakeRun(table, next_first, run)) {
      return Error::Of(ErrorCode::kProtocol, Text("run %zu: the table %s", index, wrong));
    }
    const bool inside = run.first_page < ram_pages && run.pages <= ram_pages - run.first_page;
    if (!inside || run.pages > kRunPagesMax) {
      return Error::Of(ErrorCode::kProtocol,
                       Text("run %zu: first page %" PRIu64 ", pages %" PRIu64
                            ": RAM has %" PRIu64 " pages",
                            index, run.first_page, run.pages, ram_pages));
    }
    total += run.pages;
  }
  return total;
}

bool RunCursor::Next(WireRun& run) {
  if (rest_.empty()) return false;
  RawRun raw;
  HF_ASSERT(TakeRun(rest_, next_first_, raw) == nullptr);
  run = {raw.first_page, static_cast<uint32_t>(raw.pages)};
  return true;
}

}  // namespace holdfast
