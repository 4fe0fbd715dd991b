// A file of the backup's side of a disk: image, journal, aside. A small set of
// operations, each at an offset, so that a test can put a disk that loses its
// power in their place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

class DiskFile {
 public:
  // Regular files and block devices, for reading and writing.
  static Result<std::unique_ptr<DiskFile>> Open(const std::string& path);
  // A new regular file, in place of one that is there: sparse.
  static Result<std::unique_ptr<DiskFile>> Create(const std::string& path, uint64_t bytes);

  DiskFile(std::string path, Descriptor file, uint64_t bytes, bool block_device)
      : path_(std::move(path)), file_(std::move(file)), bytes_(bytes), block_device_(block_device) {}
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;
  virtual ~DiskFile() = default;

  const std::string& path() const { return path_; }
  int fd() const { return file_.get(); }
  uint64_t bytes() const { return bytes_; }
  bool block_device() const { return block_device_; }

  Status Read(uint64_t offset, std::span<std::byte> to) const;

  // What is written is on stable storage once Sync has returned, not before.
  virtual Status Write(uint64_t offset, std::span<const std::byte> bytes);
  // The range reads as zeros. A hole gives its space back where that can be done;
  // otherwise the range stays allocated.
  virtual Status Zero(uint64_t offset, uint64_t bytes, bool hole);
  // What another file has at `from_offset`, without a copy of it in this process.
  virtual Status CopyFrom(const DiskFile& from, uint64_t from_offset, uint64_t offset,
                          uint64_t bytes);
  virtual Status Sync();
  // The kernel is asked to begin writing; nothing is promised.
  void StartWriteback(uint64_t offset, uint64_t bytes) const;
  // Its space is taken now, where the file system can do that.
  Status Reserve();

 protected:
  // kNoSpace where the disk is full.
  Error Failed(const char* syscall, const char* doing, uint64_t offset) const;

 private:
  Status WriteZeros(uint64_t offset, uint64_t bytes);

  const std::string path_;
  const Descriptor file_;
  const uint64_t bytes_;
  const bool block_device_;
};

}  // namespace holdfast
