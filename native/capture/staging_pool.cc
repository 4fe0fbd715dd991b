#include "capture/staging_pool.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "capture/copy_page.h"

namespace holdfast {
namespace {

constexpr uint64_t kMemoryPageBytes = 4096;
constexpr uint64_t kGrowBytes = 8ull << 20;
// One helping for a copying thread: enough to be worth waking it, small enough to share.
constexpr uint64_t kSliceBytes = 1ull << 20;

constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Copies staged pages [first, last): finds the run that holds `first`, goes on from there.
void CopySlice(const PageSource& guest, std::byte* staging, uint32_t page_size,
               const std::vector<PageRun>& runs, uint64_t first, uint64_t last) {
  auto run = std::upper_bound(
      runs.begin(), runs.end(), first,
      [](uint64_t page, const PageRun& candidate) { return page < candidate.source_page; });
  --run;
  std::byte* target = staging + first * page_size;
  while (first < last) {
    const uint64_t skipped = first - run->source_page;
    const uint64_t pages = std::min<uint64_t>(run->pages - skipped, last - first);
    const std::byte* source = guest.base + (run->first_page + skipped) * page_size;
    const std::byte* const source_end = source + pages * page_size;
    ++run;
    const std::byte* const next_source =
        run == runs.end() ? source : guest.base + run->first_page * page_size;
    for (; source < source_end; source += kCopyPageBytes, target += kCopyPageBytes) {
      const std::byte* next = source + kCopyPageBytes;
      CopyPage(target, source, next < source_end ? next : next_source);
    }
    first += pages;
  }
}

}  // namespace

Result<std::unique_ptr<StagingPool>> StagingPool::Create(uint64_t bytes_max, StagingPages pages) {
  bytes_max = std::max(bytes_max / kMemoryPageBytes, uint64_t{1}) * kMemoryPageBytes;
  auto staging = OpenStagingFile(bytes_max, pages);
  if (!staging.ok()) return staging.error();
  const uint64_t bytes = staging.value().bytes;
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                      staging.value().file.get(), 0);
  if (base == MAP_FAILED) return Error::FromErrno("mmap", "staging pool", ErrorCode::kNoSpace);
  Mapping mapping(base, bytes);
  ::madvise(base, bytes, MADV_DONTDUMP);
  ::madvise(base, bytes, MADV_DONTFORK);
  return std::unique_ptr<StagingPool>(
      new StagingPool(std::move(staging).value(), std::move(mapping), bytes_max));
}

PageSource StagingPool::source() const {
  return {file_.get(), 0, mapping_.data(), mapping_.size(), /*pinnable=*/true};
}

Status StagingPool::Grow(uint64_t bytes) {
  const uint64_t target = std::min(RoundUp(bytes, kGrowBytes), uint64_t{mapping_.size()});
  if (target <= bytes_ready_) return {};
  // Reserved before it is touched: a touch that finds no memory is a SIGBUS.
  if (::fallocate(file_.get(), 0, static_cast<off_t>(bytes_ready_),
                  static_cast<off_t>(target - bytes_ready_)) != 0) {
    return Error::FromErrno("fallocate",
                            "growing the staging pool to " + std::to_string(target) + " bytes",
                            ErrorCode::kNoSpace);
  }
  ::madvise(mapping_.data() + bytes_ready_, target - bytes_ready_, MADV_POPULATE_WRITE);
  bytes_ready_ = target;
  return {};
}

Status StagingPool::Stage(const PageSource& guest, uint32_t page_size, std::vector<PageRun>& runs,
                          uint64_t first_page, WorkerPool& pool) {
  uint64_t end_page = first_page;
  for (PageRun& run : runs) {
    run.source_page = end_page;
    end_page += run.pages;
  }
  HF_ASSERT(end_page * page_size <= bytes_max_);
  HF_TRY(Grow(end_page * page_size));
  const uint64_t slice_pages = std::max<uint64_t>(kSliceBytes / page_size, 1);
  pool.ForEach((end_page - first_page + slice_pages - 1) / slice_pages, [&](size_t slice) {
    const uint64_t first = first_page + slice * slice_pages;
    CopySlice(guest, mapping_.data(), page_size, runs, first,
              std::min(first + slice_pages, end_page));
  });
  return {};
}

}  // namespace holdfast
