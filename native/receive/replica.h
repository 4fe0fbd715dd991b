// The replica: the file that becomes the guest's RAM at failover.
//
// The apply thread writes to it from the first epoch on. During base rounds the
// receive threads do, each the pages that its stream was the first to name;
// Place and Zero are called one at a time.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "receive/staging.h"
#include "receive/stream_reader.h"
#include "wire/page_bitmap.h"
#include "wire/run_table.h"

namespace holdfast {

class Replica {
 public:
  // Creates the file (replacing a regular file of that name by a new one, so
  // that whoever still maps the old one keeps it), reserves all its memory and
  // maps it. On failure no file is left behind. `sparse`: it is only seen to it
  // that there is room now; Reserve() does the rest.
  static Result<Replica> Create(const std::string& path, uint64_t ram_bytes, uint32_t page_size,
                                bool sparse = false);

  // Before the first page is received, and once: a write to a mapping meets a
  // full tmpfs as SIGBUS. kNoSpace: nothing is reserved, and it may be tried again.
  Status Reserve();

  // Base rounds. Where the pages of these runs belong, for the next read: in
  // the file, or, if files of its kind can't be written to, in the mapping.
  void Place(std::span<const std::byte> table, std::vector<FilePart>& parts);
  void Place(std::span<const std::byte> table, std::vector<iovec>& parts);
  // -1: only through the mapping.
  int file() const { return file_.get(); }
  void Zero(std::span<const std::byte> table);

  // Applies a committed epoch. Stops early, the replica then being worthless,
  // only if `abandon` becomes true.
  void Apply(const EpochStaging& epoch, const std::atomic<bool>& abandon);

 private:
  Replica(std::string path, Descriptor file, Mapping memory, uint64_t ram_bytes,
          uint32_t page_size, bool reserved)
      : path_(std::move(path)),
        file_(std::move(file)),
        memory_(std::move(memory)),
        page_size_(page_size),
        reserved_(reserved),
        written_(ram_bytes / page_size) {}

  void ZeroRun(const WireRun& run);
  std::byte* At(uint64_t page) const { return memory_.data() + page * page_size_; }

  std::string path_;
  Descriptor file_;
  Mapping memory_;
  uint32_t page_size_;
  bool reserved_;
  PageBitmap written_;  // pages that may differ from zero
};

}  // namespace holdfast
