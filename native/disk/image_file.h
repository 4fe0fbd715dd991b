// A disk's image: a raw file or a block device of fixed size. The same calls for
// the disk server, which serves it, and for the backup, which applies the log to it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

// A write lock on this byte (OFD, far behind the end of any image, and apart
// from those that QEMU takes) says: I write to this image.
inline constexpr off_t kImageLockOffset = off_t{0x4846'4449'534b'0000};  // "HFDISK"

class ImageFile {
 public:
  // Its size is what it is now.
  static Result<ImageFile> Open(const std::string& path);

  uint64_t bytes() const { return bytes_; }
  bool is_block_device() const { return block_device_; }
  int fd() const { return file_.get(); }

  // Until it is closed. EBUSY: another process has it.
  Status Lock();
  void Unlock();

  // The rest answer 0 or an errno: they are answered to a guest, as they are.
  // Offsets are within the image.
  int Read(std::span<std::byte> target, uint64_t offset) const;
  int Write(std::span<const std::byte> bytes, uint64_t offset) const;
  // Reads as zeros and stays allocated; EOPNOTSUPP: write zeros. `fast_only`: not
  // if it may take as long as that.
  int Zero(uint64_t offset, uint64_t length, bool fast_only) const;
  // Reads as zeros and is a hole, or EOPNOTSUPP.
  int Punch(uint64_t offset, uint64_t length) const;
  int Flush() const;
  // What of it is in memory only begins its way to the disk. A hint; what fails,
  // the next Flush() tells.
  void StartWriteback() const;

  // The part of a range that Punch() takes: on a block device whole sectors only.
  struct Range {
    uint64_t offset;
    uint64_t length;
  };
  Range Punchable(uint64_t offset, uint64_t length) const;

  // Does it know holes? And the run of data or of a hole that begins at `offset`.
  bool knows_holes() const;
  struct Extent {
    uint64_t end;
    bool hole;
  };
  Result<Extent> ExtentAt(uint64_t offset) const;

 private:
  ImageFile(Descriptor file, uint64_t bytes, uint64_t sector_bytes, bool block_device, std::string path)
      : file_(std::move(file)),
        bytes_(bytes),
        sector_bytes_(sector_bytes),
        block_device_(block_device),
        path_(std::move(path)) {}

  Descriptor file_;
  uint64_t bytes_;
  uint64_t sector_bytes_;  // a block device's; 1 of a file
  bool block_device_;
  std::string path_;
};

}  // namespace holdfast
