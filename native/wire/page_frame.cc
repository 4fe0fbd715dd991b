#include "wire/page_frame.h"

#include <cinttypes>
#include <utility>

#include "wire/bytes.h"
#include "wire/run_table.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// Half of what a table may have: a run more never exceeds it.
constexpr size_t kTableBytes = kTableBytesMax / 2;

void AppendListFrame(std::vector<std::byte>& frames, FrameType type,
                     std::span<const std::byte> table, uint64_t pages) {
  const HeaderBytes head = EncodeHeader({.type = type,
                                         .table_bytes = static_cast<uint32_t>(table.size()),
                                         .payload_bytes = PageListBody::kBytes});
  frames.insert(frames.end(), head.begin(), head.end());
  frames.insert(frames.end(), table.begin(), table.end());
  const size_t at = frames.size();
  frames.resize(at + PageListBody::kBytes);
  Put(&frames[at], pages);
}

}  // namespace

std::vector<std::byte> EncodePageList(FrameType type, std::span<const PageRun> runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.pages;
  std::vector<std::byte> frames;
  RunTableWriter table;
  for (size_t i = 0; i < runs.size();) {
    WireRun joined{runs[i].first_page, runs[i].pages};
    // Neighbours are one run in a table.
    for (i++; i < runs.size() && runs[i].first_page == joined.first_page + joined.pages; i++) {
      joined.pages += runs[i].pages;
    }
    table.Add(joined);
    if (table.bytes().size() < kTableBytes) continue;
    AppendListFrame(frames, type, table.bytes(), pages);
    table.Clear();
  }
  if (!table.bytes().empty() || frames.empty()) {
    AppendListFrame(frames, type, table.bytes(), pages);
  }
  return frames;
}

PageListBody DecodePageList(std::span<const std::byte, PageListBody::kBytes> bytes) {
  return {Get<uint64_t>(bytes.data())};
}

std::array<std::byte, PageDemandBody::kBytes> EncodePageDemand(const PageDemandBody& demand) {
  std::array<std::byte, PageDemandBody::kBytes> bytes;
  Put(bytes.data(), demand.page);
  return bytes;
}

PageDemandBody DecodePageDemand(std::span<const std::byte, PageDemandBody::kBytes> bytes) {
  return {Get<uint64_t>(bytes.data())};
}

std::array<std::byte, PageDataBody::kBytes> EncodePageData(const PageDataBody& data) {
  std::array<std::byte, PageDataBody::kBytes> bytes;
  Put(&bytes[0], data.first_page);
  Put(&bytes[8], data.pages);
  Put(&bytes[12], uint32_t{data.demanded ? 1u : 0u});
  Put(&bytes[16], data.digest);
  return bytes;
}

PageDataBody DecodePageData(std::span<const std::byte, PageDataBody::kBytes> bytes) {
  return {Get<uint64_t>(&bytes[0]), Get<uint32_t>(&bytes[8]), Get<uint32_t>(&bytes[12]) != 0,
          Get<uint64_t>(&bytes[16])};
}

std::array<std::byte, PagesHaveBody::kBytes> EncodePagesHave(const PagesHaveBody& have) {
  std::array<std::byte, PagesHaveBody::kBytes> bytes;
  Put(&bytes[0], have.faults);
  Put(&bytes[8], have.p50_us);
  Put(&bytes[16], have.p99_us);
  Put(&bytes[24], have.max_us);
  return bytes;
}

PagesHaveBody DecodePagesHave(std::span<const std::byte, PagesHaveBody::kBytes> bytes) {
  return {Get<uint64_t>(&bytes[0]), Get<uint64_t>(&bytes[8]), Get<uint64_t>(&bytes[16]),
          Get<uint64_t>(&bytes[24])};
}

Result<bool> PageListReader::Add(std::span<const std::byte> table, const PageListBody& body) {
  const auto checked = CheckRuns(table, ram_pages_);
  if (!checked.ok()) return checked.error();
  WireRun run;
  for (RunCursor cursor(table); cursor.Next(run);) {
    const bool ascends = runs_.empty() ||
                         run.first_page >= runs_.back().first_page + runs_.back().pages;
    if (!ascends) return Error::Of(ErrorCode::kProtocol, "a list of pages goes back");
    runs_.push_back({run.first_page, run.first_page, run.pages});
  }
  pages_ += checked.value();
  // Also when nothing came: a list that stands still would never end.
  if (pages_ > body.pages || (table.empty() && pages_ < body.pages)) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("a list of %" PRIu64 " pages has %" PRIu64, body.pages, pages_));
  }
  return pages_ == body.pages;
}

std::vector<PageRun> PageListReader::Take() {
  pages_ = 0;
  return std::exchange(runs_, {});
}

}  // namespace holdfast
