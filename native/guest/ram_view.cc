#include "guest/ram_view.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace holdfast {
namespace {

constexpr uint32_t kTmpfsPageSize = 4096;

}  // namespace

Result<std::unique_ptr<RamView>> RamView::Open(pid_t pid, const RamMapping& located,
                                               uint64_t address, uint64_t size,
                                               uint64_t file_offset) {
  const uint32_t page_size = located.page_size;
  if (size == 0 || size % page_size != 0 || address % page_size != 0) {
    return Error::Of(ErrorCode::kRamMapping, "guest RAM is not a whole number of pages");
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

Result<std::vector<PageRun>> RamView::Populated(DirtyTracker& tracker) const {
  if (page_size_ != kTmpfsPageSize) return tracker.Present();
  std::vector<PageRun> runs;
  const auto end = static_cast<off_t>(file_offset_ + mapping_.size());
  auto at = static_cast<off_t>(file_offset_);
  while (at < end) {
    const off_t data = ::lseek(file_.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // holes to the end
    if (data < 0) return Error::FromErrno("lseek", "SEEK_DATA on guest RAM");
    if (data >= end) break;
    const off_t hole = ::lseek(file_.get(), data, SEEK_HOLE);
    if (hole < 0) return Error::FromErrno("lseek", "SEEK_HOLE on guest RAM");
    const uint64_t first = (static_cast<uint64_t>(data) - file_offset_) / page_size_;
    const uint64_t last = (static_cast<uint64_t>(std::min(hole, end)) - file_offset_ + page_size_ - 1) / page_size_;
    AppendRun(runs, {first, first, static_cast<uint32_t>(last - first)});
    at = hole;
  }
  return runs;
}

void RamView::Prefault(const PageRun& run) const {
  // Advice: if it fails, the pages fault in one by one.
  ::madvise(mapping_.data() + run.source_page * page_size_, size_t{run.pages} * page_size_,
            MADV_POPULATE_READ);
}

}  // namespace holdfast
