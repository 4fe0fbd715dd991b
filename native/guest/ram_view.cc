#include "guest/ram_view.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>

#include "send/zero_page.h"

namespace holdfast {
namespace {

constexpr uint32_t kTmpfsPageSize = 4096;
constexpr uint32_t kPageSizeMax = 2u << 20;
constexpr size_t kReadBytes = 64 << 10;

}  // namespace

Result<std::unique_ptr<RamView>> RamView::Open(pid_t pid, const RamMapping& located,
                                               uint64_t address, uint64_t size,
                                               uint64_t file_offset) {
  const uint32_t page_size = located.page_size;
  if (size == 0 || size % page_size != 0 || address % page_size != 0) {
    return Error::Of(ErrorCode::kRamMapping, "guest RAM is not a whole number of pages");
  }
  // One written byte makes the whole page travel: no epoch could bear a gigabyte.
  if (page_size > kPageSizeMax) {
    return Error::Of(ErrorCode::kUnsupported,
                     "guest RAM lies on pages of " + std::to_string(page_size >> 20) +
                         " MiB: 2 MiB is the most that can be protected");
  }
  auto file = OpenRamFile(pid, located);
  if (!file.ok()) return file.error();
  void* base = ::mmap(nullptr, size, PROT_READ, MAP_SHARED | MAP_NORESERVE, file.value().get(),
                      static_cast<off_t>(file_offset));
  if (base == MAP_FAILED) {
    return Error::FromErrno("mmap", "mapping guest RAM", ErrorCode::kRamMapping);
  }
  Mapping mapping(base, size);
  // A core dump of ours must not hold the guest's memory.
  ::madvise(base, size, MADV_DONTDUMP);
  ::madvise(base, size, MADV_DONTFORK);
  return std::unique_ptr<RamView>(
      new RamView(std::move(file).value(), std::move(mapping), file_offset, page_size));
}

PageSource RamView::source() const {
  return {file_.get(), file_offset_, mapping_.data(), mapping_.size()};
}

std::optional<SparseFile> RamView::sparse_file() const {
  if (page_size_ != kTmpfsPageSize) return {};
  return SparseFile{file_.get(), file_offset_, page_size_};
}

Result<std::vector<PageRun>> RamView::Populated(DirtyTracker& tracker) const {
  return page_size_ == kTmpfsPageSize ? PopulatedOnTmpfs() : PopulatedOnHugetlbfs(tracker);
}

Result<std::vector<PageRun>> RamView::PopulatedOnTmpfs() const {
  std::vector<PageRun> runs;
  HF_TRY(AppendHeldPages(*sparse_file(), 0, mapping_.size() / page_size_, runs));
  return runs;
}

// What QEMU has mapped is less than what the file holds: nearly all of RAM,
// when a standby has just resumed over its replica. How much the file holds is
// known, but not where, so what is neither all nor just what is mapped is read.
Result<std::vector<PageRun>> RamView::PopulatedOnHugetlbfs(DirtyTracker& tracker) const {
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0) return Error::FromErrno("fstat", "guest RAM");
  constexpr uint64_t kBlockBytes = 512;
  const uint64_t held_bytes = static_cast<uint64_t>(status.st_blocks) * kBlockBytes;
  const uint64_t pages = mapping_.size() / page_size_;
  if (held_bytes >= static_cast<uint64_t>(status.st_size)) {
    return std::vector<PageRun>{{0, 0, static_cast<uint32_t>(pages)}};
  }
  auto mapped = tracker.Present();
  if (!mapped.ok() || PagesOf(mapped.value()) * page_size_ == held_bytes) return mapped;
  std::vector<PageRun> runs;
  const auto add_unmapped = [&](uint64_t first, uint64_t last) -> Status {
    for (uint64_t page = first; page < last; ++page) {
      const auto holds_data = HoldsData(page);
      if (!holds_data.ok()) return holds_data.error();
      if (holds_data.value()) AppendRun(runs, {page, page, 1});
    }
    return {};
  };
  uint64_t next_page = 0;
  for (const PageRun& run : mapped.value()) {
    HF_TRY(add_unmapped(next_page, run.first_page));
    AppendRun(runs, run);
    next_page = run.first_page + run.pages;
  }
  HF_TRY(add_unmapped(next_page, pages));
  return runs;
}

// By read, which fills no hole.
Result<bool> RamView::HoldsData(uint64_t page) const {
  std::array<std::byte, kReadBytes> bytes;
  const uint64_t start = file_offset_ + page * page_size_;
  for (uint64_t done = 0; done < page_size_;) {
    const ssize_t got = ::pread(file_.get(), bytes.data(), bytes.size(),
                                static_cast<off_t>(start + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::FromErrno("pread", "guest RAM");
    if (static_cast<size_t>(got) != bytes.size()) {
      return Error::Of(ErrorCode::kRamMapping, "the file of guest RAM shrank");
    }
    if (!IsZeroPage(bytes.data(), bytes.size())) return true;
    done += bytes.size();
  }
  return false;
}

void RamView::Prefault(const PageRun& run) const {
  // Advice: if it fails, the pages fault in one by one.
  ::madvise(mapping_.data() + run.source_page * page_size_, size_t{run.pages} * page_size_,
            MADV_POPULATE_READ);
}

}  // namespace holdfast
