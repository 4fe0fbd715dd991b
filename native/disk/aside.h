// What a new synchronisation brings while the image must stay as it is: a sparse
// file in which each byte lies at its place in the image, and two bits per
// 4 KiB block that say what of it counts.
//
//   Write, Zero … ─► Freeze (durable) ─► Merge into the image, as often as it takes
//
// Until Freeze nothing of it is needed after a crash: the file is thrown away.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "base/descriptor.h"
#include "base/result.h"
#include "disk/disk_directory.h"
#include "disk/disk_file.h"
#include "disk/journal.h"

namespace holdfast {

class Aside {
 public:
  // In place of an older one. `image` is what blocks are filled up from of which
  // only a part is written, and outlives this.
  static Result<std::unique_ptr<Aside>> Create(DiskDirectory& directory, const DiskFile& image);
  // A frozen one. kDisk if it is not there, or is not the one of that name.
  static Result<std::unique_ptr<Aside>> Open(DiskDirectory& directory, const DiskFile& image,
                                             const SyncId& id);
  static void Remove(DiskDirectory& directory);

  // Any thread.
  void StartWriteback(uint64_t offset, uint64_t bytes) { data_->StartWriteback(offset, bytes); }
  Status Write(uint64_t offset, std::span<const std::byte> bytes);
  Status Zero(uint64_t offset, uint64_t bytes, bool hole);

  // Data and index are on stable storage from here on, under this name.
  Status Freeze(const SyncId& id);
  // kCancelled if told to stop; may be repeated.
  Status Merge(DiskFile& image, const std::atomic<bool>& stop) const;

 private:
  enum class Block : unsigned { kImage = 0, kData = 1, kZeros = 2, kHole = 3 };

  Aside(DiskDirectory& directory, const DiskFile& image, std::unique_ptr<DiskFile> data,
        Mapping index)
      : directory_(directory), image_(image), data_(std::move(data)), index_(std::move(index)) {}

  static constexpr uint64_t kBlockBytes = 4096;
  static uint64_t BlocksOf(const DiskFile& image) {
    return (image.bytes() + kBlockBytes - 1) / kBlockBytes;
  }
  static uint64_t IndexBytesOf(const DiskFile& image) { return (BlocksOf(image) + 3) / 4; }
  uint64_t BlockEnd(uint64_t block) const;

  Block Get(uint64_t block) const;
  void Set(uint64_t block, Block state);
  Status FillUp(uint64_t block);
  Status WriteWithin(uint64_t offset, std::span<const std::byte> bytes);

  DiskDirectory& directory_;
  std::mutex mutex_;  // the base and the log are written side by side
  const DiskFile& image_;
  const std::unique_ptr<DiskFile> data_;
  const Mapping index_;  // zeros, and no memory, where nothing was written
};

}  // namespace holdfast
