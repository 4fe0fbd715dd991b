// Reads an image for the base copy, hole by hole and piece by piece, while the
// disk server goes on writing to it.
//
// What is read may be older or newer than any moment, or torn: the caller's
// order makes it right (docs/disk.md, "The base copy"). It sends all log that
// was published before it calls Next(), and that call looks and reads anew, so
// what a piece lacks is in log that is sent after it. For the same reason a
// hole is told at once, and never remembered.
//
// The bytes go through a buffer of ours. By reference (sendfile) they would be
// read when they leave, and anew with each retransmission, as they are by then.
// The log would heal that too, but only for the reason that no epoch is captured
// before the backup has all of the base; a copy needs no such reason, and the
// look for zeros reads the bytes anyway.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "disk/block_set.h"
#include "wire/disk_frame.h"

namespace holdfast {

class BaseCopy {
 public:
  struct Piece {
    DiskBaseBody::Kind kind = DiskBaseBody::Kind::kData;
    uint64_t offset = 0;
    uint64_t length = 0;
    std::span<const std::byte> data{};  // none of a hole
  };

  // A regular file or a block device; without `changed` all of it.
  static Result<BaseCopy> Open(const std::string& path, uint64_t image_bytes,
                               std::optional<BlockSet> changed);

  // The next pieces, up to kDiskPieceBytesMax of data, valid until the next call;
  // none once all was read.
  Result<std::span<const Piece>> Next();

  // Bytes of data read so far, and expected in all: an estimate until the end.
  uint64_t done_bytes() const { return done_bytes_; }
  uint64_t total_bytes() const { return total_bytes_ > done_bytes_ ? total_bytes_ : done_bytes_; }

 private:
  BaseCopy(Descriptor image, std::string path, uint64_t image_bytes,
           std::optional<BlockSet> changed);

  bool EnterRange();
  Result<bool> EnterData();
  Error Shrank() const;
  Status Read(uint64_t length);
  void Split(uint64_t length);
  void Add(DiskBaseBody::Kind kind, uint64_t offset, uint64_t length,
           std::span<const std::byte> data);
  void ReadAhead();

  Descriptor image_;
  std::string path_;
  uint64_t image_bytes_;
  std::optional<BlockSet> changed_;

  uint64_t at_ = 0;
  uint64_t range_end_ = 0;  // of what is to be read
  uint64_t data_end_ = 0;   // of what was data when it was looked
  uint64_t ahead_end_ = 0;  // of what the kernel was asked for
  uint64_t done_bytes_ = 0;
  uint64_t total_bytes_ = 0;
  std::unique_ptr<std::byte[]> buffer_;
  std::vector<Piece> pieces_;
};

}  // namespace holdfast
