// Writes one layer of a checkpoint: its pages, in whatever order they come and
// as often as they come, then its index.
//
// A page is copied before it is looked at, since the guest may be writing to it:
// digest and file then say the same, torn or not. A torn page is dirty again,
// and comes once more before the layer is finished.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "checkpoint/page_table.h"
#include "send/page_run.h"

namespace holdfast {

class LayerWriter {
 public:
  // Creates the file; one that is there already is an error.
  static Result<std::unique_ptr<LayerWriter>> Create(const std::string& path, uint32_t page_size,
                                                     uint64_t pages, bool full);

  struct Counts {
    uint64_t content_pages = 0;
    uint64_t zero_pages = 0;
  };
  // Adds what was written to `counts`, also where it fails.
  Status Write(const PageSource& source, const std::vector<PageRun>& runs,
               const CancelSignal& cancel, Counts& counts);

  // Pages and index are on stable storage when it returns: the index's trailer.
  Result<uint64_t> Finish(const std::string& index_path);

  const PageTable& table() const { return table_; }

 private:
  LayerWriter(Descriptor file, std::string path, uint32_t page_size, uint64_t pages, bool full);

  Status WriteChunk(const std::byte* source, uint64_t first_page, uint64_t pages, Counts& counts);
  Status PunchPage(uint64_t page);
  Status StartWriteback();

  const Descriptor file_;
  const std::string path_;
  PageTable table_;
  std::vector<std::byte> chunk_;
  uint64_t unsynced_bytes_ = 0;
};

}  // namespace holdfast
