// Pages from files on this host: a checkpoint's.
//
// Each extent says where a run of pages stands; pages of no extent are zeros.
// Extents may be in any number of files, so a checkpoint that was written in
// increments is read without being put together first.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/descriptor.h"
#include "postcopy/page_order.h"
#include "postcopy/page_origin.h"

namespace holdfast {

struct FileExtent {
  uint64_t first_page = 0;
  uint32_t pages = 0;
  uint32_t file = 0;    // which of the files
  uint64_t offset = 0;  // bytes, of the first page in it
};

class FileOrigin final : public PageOrigin {
 public:
  // What is known of a page's content: an error is the end of the VM. On the
  // fault server's thread.
  using Verify = std::function<Status(uint64_t first_page, std::span<const std::byte> bytes)>;

  // `extents` ascend by page and don't overlap. Of `hot` pages it begins with,
  // when none is demanded.
  static Result<std::unique_ptr<FileOrigin>> Create(std::vector<Descriptor> files,
                                                    std::vector<FileExtent> extents,
                                                    uint64_t ram_pages, uint32_t page_size,
                                                    std::vector<PageRun> hot = {},
                                                    Verify verify = {});

  int fd() const override { return -1; }
  bool pushing() const override { return !listed_ || !order_.pending().empty(); }
  Status Demand(uint64_t page, PageSink& sink) override;
  Status Take(PageSink& sink) override;
  Status Complete(const Report&) override { return {}; }

 private:
  FileOrigin(std::vector<Descriptor> files, std::vector<FileExtent> extents, PageSet pages,
             uint32_t page_size, std::vector<PageRun> hot, Verify verify);
  Status Bring(uint32_t pages_max, PageSink& sink);
  Status Read(uint64_t page, uint64_t pages, std::span<std::byte> to) const;

  const std::vector<Descriptor> files_;
  const std::vector<FileExtent> extents_;
  const uint32_t page_size_;
  const Verify verify_;
  PageOrder order_;
  bool listed_ = false;
  std::vector<std::byte> buffer_;
};

}  // namespace holdfast
