#include "postcopy/file_origin.h"

#include <unistd.h>

#include <algorithm>

#include "send/zero_page.h"

namespace holdfast {
namespace {

// Half a millisecond of a disk's time: so long a fault may wait behind it.
constexpr uint64_t kPortionBytes = 256 << 10;

Status ReadAll(int fd, uint64_t offset, std::span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t got = ::pread(fd, to.data(), to.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::FromErrno("pread", "reading pages of a checkpoint");
    if (got == 0) {
      return Error::Of(ErrorCode::kSyscall, "a file of the checkpoint is shorter than it should be");
    }
    offset += static_cast<uint64_t>(got);
    to = to.subspan(static_cast<size_t>(got));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<FileOrigin>> FileOrigin::Create(std::vector<Descriptor> files,
                                                       std::vector<FileExtent> extents,
                                                       uint64_t ram_pages, uint32_t page_size,
                                                       std::vector<PageRun> hot, Verify verify) {
  PageSet pages(ram_pages);
  uint64_t next_page = 0;
  for (const FileExtent& extent : extents) {
    const bool sound = extent.pages > 0 && extent.first_page >= next_page &&
                       extent.first_page < ram_pages &&
                       extent.pages <= ram_pages - extent.first_page &&
                       extent.file < files.size();
    if (!sound) {
      return Error::Of(ErrorCode::kProtocol, "the checkpoint's pages are not in order");
    }
    pages.Add(extent.first_page, extent.pages);
    next_page = extent.first_page + extent.pages;
  }
  return std::unique_ptr<FileOrigin>(new FileOrigin(std::move(files), std::move(extents),
                                                    std::move(pages), page_size, std::move(hot),
                                                    std::move(verify)));
}

FileOrigin::FileOrigin(std::vector<Descriptor> files, std::vector<FileExtent> extents,
                       PageSet pages, uint32_t page_size, std::vector<PageRun> hot, Verify verify)
    : files_(std::move(files)),
      extents_(std::move(extents)),
      page_size_(page_size),
      verify_(std::move(verify)),
      order_(std::move(pages), std::move(hot)) {}

Status FileOrigin::Demand(uint64_t page, PageSink& sink) {
  order_.Demand(page);
  return order_.demanded() ? Bring(1, sink) : Status();
}

Status FileOrigin::Take(PageSink& sink) {
  if (!listed_) {
    listed_ = true;
    auto lacking = sink.List(order_.pending());
    return lacking.ok() ? Status() : lacking.error();
  }
  return Bring(static_cast<uint32_t>(std::max<uint64_t>(1, kPortionBytes / page_size_)), sink);
}

Status FileOrigin::Bring(uint32_t pages_max, PageSink& sink) {
  const PageOrder::Portion portion = order_.Next(pages_max);
  const PageRun& run = portion.run;
  if (run.pages == 0) return {};
  buffer_.resize(uint64_t{run.pages} * page_size_);
  HF_TRY(Read(run.first_page, run.pages, buffer_));
  if (verify_) HF_TRY(verify_(run.first_page, buffer_));
  if (IsZeroPage(buffer_.data(), buffer_.size())) {
    return sink.Zero(run.first_page, run.pages, portion.demanded);
  }
  return sink.Install(run.first_page, buffer_, portion.demanded);
}

// Pages that follow each other may stand in several extents.
Status FileOrigin::Read(uint64_t page, uint64_t pages, std::span<std::byte> to) const {
  auto extent = std::upper_bound(
      extents_.begin(), extents_.end(), page,
      [](uint64_t wanted, const FileExtent& one) { return wanted < one.first_page; });
  HF_ASSERT(extent != extents_.begin());
  for (--extent; pages > 0; ++extent) {
    HF_ASSERT(extent != extents_.end() && page >= extent->first_page);
    const uint64_t skipped = page - extent->first_page;
    const uint64_t here = std::min(pages, extent->pages - skipped);
    HF_TRY(ReadAll(files_[extent->file].get(), extent->offset + skipped * page_size_,
                   to.first(here * page_size_)));
    to = to.subspan(here * page_size_);
    page += here;
    pages -= here;
  }
  return {};
}

}  // namespace holdfast
