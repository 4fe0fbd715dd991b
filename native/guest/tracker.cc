#include "guest/tracker.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <limits>
#include <string>

#include "base/kernel_abi.h"

namespace holdfast {
namespace {

// What the kernel gathers before it copies to us: with more room, a call takes
// no longer, and none of it is touched in vain.
constexpr size_t kRegionsPerCall = 512;
// What a thread scans at a time, in some 50 microseconds: below this another
// call costs more than it gains, and above it a thread that wakes late, or
// shares its core with QEMU, is waited for.
constexpr uint64_t kScanChunkBytes = 128ull << 20;
// Runs no further apart than this are looked at in one call, which takes longer
// to make than to walk so many pages.
constexpr uint64_t kGapPagesMax = 512;

}  // namespace

void AppendRun(std::vector<PageRun>& runs, const PageRun& run) {
  if (!runs.empty()) {
    PageRun& last = runs.back();
    const uint64_t joined = uint64_t{last.pages} + run.pages;
    if (last.first_page + last.pages == run.first_page &&
        last.source_page + last.pages == run.source_page &&
        joined <= std::numeric_limits<uint32_t>::max()) {
      last.pages = static_cast<uint32_t>(joined);
      return;
    }
  }
  runs.push_back(run);
}

std::vector<PageRun> UnionOf(const std::vector<PageRun>& left, const std::vector<PageRun>& right) {
  std::vector<PageRun> merged;
  merged.reserve(left.size() + right.size());
  auto a = left.begin();
  auto b = right.begin();
  uint64_t covered = 0;  // pages below it are in `merged` or in neither
  while (a != left.end() || b != right.end()) {
    const bool take_left =
        b == right.end() || (a != left.end() && a->first_page <= b->first_page);
    const PageRun& next = take_left ? *a++ : *b++;
    const uint64_t end = next.first_page + next.pages;
    const uint64_t start = std::max(next.first_page, covered);
    if (start >= end) continue;
    AppendRun(merged, {start, start, static_cast<uint32_t>(end - start)});
    covered = end;
  }
  return merged;
}

std::vector<PageRun> Superseded(const std::vector<PageRun>& older,
                                const std::vector<PageRun>& newer) {
  std::vector<PageRun> merged;
  merged.reserve(older.size() + 2 * newer.size());
  auto next_newer = newer.begin();
  for (PageRun rest : older) {
    while (rest.pages > 0) {
      const uint64_t rest_end = rest.first_page + rest.pages;
      if (next_newer == newer.end() || next_newer->first_page >= rest_end) {
        AppendRun(merged, rest);
        break;
      }
      const uint64_t newer_end = next_newer->first_page + next_newer->pages;
      if (next_newer->first_page > rest.first_page) {
        const auto before = static_cast<uint32_t>(next_newer->first_page - rest.first_page);
        AppendRun(merged, {rest.first_page, rest.source_page, before});
      }
      const uint64_t covered =
          newer_end > rest.first_page ? std::min(newer_end, rest_end) - rest.first_page : 0;
      rest = {rest.first_page + covered, rest.source_page + covered,
              static_cast<uint32_t>(rest.pages - covered)};
      // It may reach into the next older run too: appended only where it ends.
      if (newer_end <= rest_end) AppendRun(merged, *next_newer++);
    }
  }
  for (; next_newer != newer.end(); ++next_newer) AppendRun(merged, *next_newer);
  return merged;
}

std::vector<PageRun> Without(const std::vector<PageRun>& runs,
                             const std::vector<PageRun>& removed) {
  std::vector<PageRun> left;
  left.reserve(runs.size());
  auto next = removed.begin();
  for (PageRun rest : runs) {
    const uint64_t end = rest.first_page + rest.pages;
    const auto skip_to = [&rest, end](uint64_t page) {
      const auto skipped = static_cast<uint32_t>(std::min(page, end) - rest.first_page);
      rest = {rest.first_page + skipped, rest.source_page + skipped, rest.pages - skipped};
    };
    while (next != removed.end() && next->first_page + next->pages <= rest.first_page) ++next;
    // The last of these may reach into the next run: it is looked at again there.
    for (auto cut = next; cut != removed.end() && cut->first_page < end; ++cut) {
      if (cut->first_page > rest.first_page) {
        const auto before = static_cast<uint32_t>(cut->first_page - rest.first_page);
        AppendRun(left, {rest.first_page, rest.source_page, before});
      }
      skip_to(cut->first_page + cut->pages);
      next = cut;
    }
    if (rest.pages > 0) AppendRun(left, rest);
  }
  return left;
}

std::vector<PageRun> CutAfter(std::vector<PageRun>& runs, uint64_t pages) {
  size_t kept = 0;
  while (kept < runs.size() && runs[kept].pages <= pages) pages -= runs[kept++].pages;
  std::vector<PageRun> rest(runs.begin() + static_cast<ptrdiff_t>(kept), runs.end());
  runs.resize(kept);
  if (pages > 0 && !rest.empty()) {
    PageRun& first = rest.front();
    const auto head = static_cast<uint32_t>(pages);
    runs.push_back({first.first_page, first.source_page, head});
    first = {first.first_page + head, first.source_page + head, first.pages - head};
  }
  return rest;
}

std::vector<PageRun> Ordered(std::vector<PageRun> runs) {
  uint64_t next_page = 0;
  bool in_order = true;
  for (const PageRun& run : runs) {
    in_order = in_order && run.pages > 0 && run.first_page >= next_page;
    next_page = run.first_page + run.pages;
  }
  if (in_order) return runs;
  std::sort(runs.begin(), runs.end(), [](const PageRun& a, const PageRun& b) {
    return a.first_page < b.first_page;
  });
  return UnionOf(runs, {});  // drops what is empty or covered already
}

uint64_t PagesOf(const std::vector<PageRun>& runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.pages;
  return pages;
}

Result<std::unique_ptr<DirtyTracker>> DirtyTracker::Open(pid_t pid, uint64_t address,
                                                         uint64_t size, uint32_t page_size,
                                                         std::optional<SparseFile> file) {
  const std::string path = "/proc/" + std::to_string(pid) + "/pagemap";
  // Bound to the address space of this moment, whatever becomes of the process id.
  Descriptor pagemap(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return Error::FromErrno("open", path, ErrorCode::kUnsupported);
  return std::unique_ptr<DirtyTracker>(
      new DirtyTracker(std::move(pagemap), address, size, page_size, file));
}

Status DirtyTracker::Walk(const Query& query, uint64_t start, uint64_t end,
                          std::vector<PageRun>& runs) const {
  std::vector<abi::PageRegion> regions(kRegionsPerCall);
  while (start < end) {
    abi::PagemapScanArgument scan;
    scan.flags = query.flags;
    scan.start = start;
    scan.end = end;
    scan.regions = reinterpret_cast<uint64_t>(regions.data());
    scan.regions_max = regions.size();
    scan.category_mask = query.category_mask;
    scan.category_anyof_mask = query.category_anyof_mask;
    scan.return_mask = query.category_mask | query.category_anyof_mask;
    const int found = ::ioctl(pagemap_.get(), abi::kPagemapScan, &scan);
    if (found < 0) {
      return Error::FromErrno("PAGEMAP_SCAN", "scanning guest RAM",
                              errno == ENOTTY ? ErrorCode::kUnsupported : ErrorCode::kSyscall);
    }
    for (int i = 0; i < found; ++i) {
      const abi::PageRegion& region = regions[static_cast<size_t>(i)];
      HF_ASSERT(region.start >= address_ && region.end <= address_ + size_);
      const uint64_t first = (region.start - address_) / page_size_;
      const uint64_t last = (region.end - address_ + page_size_ - 1) / page_size_;
      AppendRun(runs, {first, first, static_cast<uint32_t>(last - first)});
    }
    HF_ASSERT(scan.walk_end > start && scan.walk_end <= end);
    start = scan.walk_end;
  }
  return {};
}

// A dead address space scans as "nothing written". It also has no tracked
// page, and that is how it is told from a guest that was idle.
Status DirtyTracker::CheckAlive() const {
  abi::PageRegion region;
  abi::PagemapScanArgument scan;
  scan.start = address_ + size_ - page_size_;
  scan.end = address_ + size_;
  scan.regions = reinterpret_cast<uint64_t>(&region);
  scan.regions_max = 1;
  scan.category_mask = abi::kPageIsWpAllowed;
  scan.return_mask = abi::kPageIsWpAllowed;
  const int found = ::ioctl(pagemap_.get(), abi::kPagemapScan, &scan);
  if (found == 1) return {};
  if (found == 0) errno = ESRCH;
  return Error::FromErrno("PAGEMAP_SCAN", "guest RAM is no longer there: QEMU has ended");
}

// What is touched, as several threads see it at once.
Result<std::vector<PageRun>> DirtyTracker::WalkAll(const Query& query, WorkerPool& pool) const {
  std::vector<TouchedBlocks::Range> chunks;
  const uint64_t chunk_pages = kScanChunkBytes / page_size_;
  for (TouchedBlocks::Range rest : blocks_.Taken()) {
    for (; rest.end_page - rest.first_page >= 2 * chunk_pages; rest.first_page += chunk_pages) {
      chunks.push_back({rest.first_page, rest.first_page + chunk_pages});
    }
    chunks.push_back(rest);
  }
  std::vector<std::vector<PageRun>> parts(chunks.size());
  std::vector<Status> outcomes(chunks.size());
  pool.ForEach(chunks.size(), [&](size_t i) {
    const TouchedBlocks::Range& chunk = chunks[i];
    outcomes[i] = Walk(query, address_ + chunk.first_page * page_size_,
                       address_ + chunk.end_page * page_size_, parts[i]);
  });
  for (const Status& outcome : outcomes) {
    if (!outcome.ok()) return outcome.error();
  }
  HF_TRY(CheckAlive());
  std::vector<PageRun> runs;
  for (std::vector<PageRun>& part : parts) {
    if (runs.empty()) {
      runs = std::move(part);
    } else {
      for (const PageRun& run : part) AppendRun(runs, run);
    }
  }
  return runs;
}

// The pages of `blocks` that exist: most are mapped, and the file knows the rest.
Result<std::vector<PageRun>> DirtyTracker::Held(
    const std::vector<TouchedBlocks::Range>& blocks) const {
  std::vector<PageRun> held;
  for (const TouchedBlocks::Range& block : blocks) {
    std::vector<PageRun> mapped;
    HF_TRY(Walk({0, abi::kPageIsPresent, 0}, address_ + block.first_page * page_size_,
                address_ + block.end_page * page_size_, mapped));
    HF_TRY(blocks_.AppendHeld(block, Ordered(std::move(mapped)), held));
  }
  return held;
}

// Clean is only what bears the mark of an earlier scan; what has no entry counts as
// written. So a transparent huge page (a tmpfs with huge=) that the kernel splits for
// a write, reclaims or swaps out, and whose one entry it simply drops, mark and all, is
// reported as a whole: too much, never too little. One that it moves keeps its mark.
//
// A block that is scanned for the first time reports all its pages, also those
// that do not exist; they are left out as they are after the scan: one that the
// guest makes in between is both reported now and found written by the next.
Result<std::vector<PageRun>> DirtyTracker::Scan(WorkerPool& pool) {
  auto touched = blocks_.New();
  if (!touched.ok()) return touched.error();
  blocks_.Take(touched.value());
  auto written = WalkAll(
      {abi::kScanWriteProtectMatching | abi::kScanCheckWpAsync, abi::kPageIsWritten, 0}, pool);
  if (!written.ok() || touched.value().empty()) return written;
  auto held = Held(touched.value());
  if (!held.ok()) return held.error();
  std::vector<PageRun> first_scanned;
  for (const TouchedBlocks::Range& block : touched.value()) {
    const auto pages = static_cast<uint32_t>(block.end_page - block.first_page);
    AppendRun(first_scanned, {block.first_page, block.first_page, pages});
  }
  const std::vector<PageRun> before = Ordered(std::move(written).value());
  return UnionOf(Without(before, first_scanned), held.value());
}

Result<uint64_t> DirtyTracker::CountWritten(WorkerPool& pool) const {
  auto touched = blocks_.New();
  if (!touched.ok()) return touched.error();
  auto held = Held(touched.value());
  if (!held.ok()) return held.error();
  auto written = WalkAll({abi::kScanCheckWpAsync, abi::kPageIsWritten, 0}, pool);
  if (!written.ok()) return written.error();
  // Ordered: where a walk goes over the same pages twice, nothing has made them clean meanwhile.
  return PagesOf(held.value()) + PagesOf(Ordered(std::move(written).value()));
}

// A page of a block that no scan has taken yet counts as written, and is: the next
// scan takes the block, and reports what it holds.
Result<std::vector<PageRun>> DirtyTracker::WrittenAround(std::span<const PageRun> runs) const {
  std::vector<PageRun> written;
  for (size_t i = 0; i < runs.size();) {
    const uint64_t first = runs[i].first_page;
    uint64_t end = first;
    for (; i < runs.size() && (end == first || runs[i].first_page <= end + kGapPagesMax); ++i) {
      end = runs[i].first_page + runs[i].pages;
    }
    HF_TRY(Walk({abi::kScanCheckWpAsync, abi::kPageIsWritten, 0}, address_ + first * page_size_,
                address_ + end * page_size_, written));
  }
  return Ordered(std::move(written));
}

Result<std::vector<PageRun>> DirtyTracker::Present() {
  std::vector<PageRun> runs;
  HF_TRY(Walk({0, 0, abi::kPageIsPresent | abi::kPageIsSwapped}, address_, address_ + size_,
              runs));
  return runs;
}

}  // namespace holdfast
