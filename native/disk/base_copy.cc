#include "disk/base_copy.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "send/zero_page.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// The disk works ahead of the network by so much.
constexpr uint64_t kReadAheadBytes = 8 * kDiskPieceBytesMax;

// Data that a file has, without looking at every extent.
Result<uint64_t> AllocatedBytes(int fd, const std::string& path, uint64_t image_bytes) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return Error::FromErrno("fstat", path);
  uint64_t size = 0;
  uint64_t allocated = 0;
  if (S_ISBLK(status.st_mode)) {
    if (::ioctl(fd, BLKGETSIZE64, &size) != 0) return Error::FromErrno("ioctl", path);
    allocated = size;
  } else if (S_ISREG(status.st_mode)) {
    size = static_cast<uint64_t>(status.st_size);
    allocated = static_cast<uint64_t>(status.st_blocks) * 512;
  } else {
    return Error::Of(ErrorCode::kUnsupported, path + " is neither a file nor a block device");
  }
  if (size < image_bytes) {
    return Error::Of(ErrorCode::kSyscall,
                     Text("%s has %llu bytes, not the disk's %llu", path.c_str(),
                          static_cast<unsigned long long>(size),
                          static_cast<unsigned long long>(image_bytes)));
  }
  return std::min(allocated, image_bytes);
}

}  // namespace

Result<BaseCopy> BaseCopy::Open(const std::string& path, uint64_t image_bytes,
                                std::optional<BlockSet> changed) {
  Descriptor image(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!image.valid()) return Error::FromErrno("open", "the image " + path);
  auto allocated = AllocatedBytes(image.get(), path, image_bytes);
  if (!allocated.ok()) return allocated.error();
  BaseCopy copy(std::move(image), path, image_bytes, std::move(changed));
  copy.total_bytes_ = copy.changed_
                          ? std::min(copy.changed_->count() * kDiskBlockBytes, image_bytes)
                          : allocated.value();
  return copy;
}

BaseCopy::BaseCopy(Descriptor image, std::string path, uint64_t image_bytes,
                   std::optional<BlockSet> changed)
    : image_(std::move(image)),
      path_(std::move(path)),
      image_bytes_(image_bytes),
      changed_(std::move(changed)),
      buffer_(new std::byte[kDiskPieceBytesMax]) {}

// Moves on to the next range; false at the end.
bool BaseCopy::EnterRange() {
  if (at_ < range_end_) return true;
  if (at_ >= image_bytes_) return false;
  if (!changed_) {
    range_end_ = image_bytes_;
    return true;
  }
  const uint64_t first = changed_->NextIn(at_ / kDiskBlockBytes);
  if (first == changed_->blocks()) {
    at_ = range_end_ = image_bytes_;
    return false;
  }
  at_ = first * kDiskBlockBytes;
  range_end_ = std::min(changed_->NextOut(first) * kDiskBlockBytes, image_bytes_);
  return true;
}

// Inside a range: false if a hole was here, and was passed.
Result<bool> BaseCopy::EnterData() {
  if (at_ < data_end_) return true;
  uint64_t data = image_bytes_;
  const off_t found = ::lseek(image_.get(), static_cast<off_t>(at_), SEEK_DATA);
  if (found >= 0) {
    data = static_cast<uint64_t>(found);
  } else if (errno == EINVAL) {
    data_end_ = image_bytes_;  // a block device: it knows no holes
    return true;
  } else if (errno != ENXIO) {
    return Error::FromErrno("lseek", "the image " + path_);
  } else if (::lseek(image_.get(), 0, SEEK_END) < static_cast<off_t>(image_bytes_)) {
    return Shrank();
  }
  if (data == at_) {
    const off_t hole = ::lseek(image_.get(), found, SEEK_HOLE);
    // Between the two calls it may have become a hole: zeros are read, then.
    data_end_ = hole > found ? static_cast<uint64_t>(hole) : at_ + kDiskBlockBytes;
    return true;
  }
  const uint64_t end = std::min(data, range_end_);
  Add(DiskBaseBody::Kind::kHole, at_, end - at_, {});
  if (changed_) total_bytes_ -= std::min(total_bytes_, end - at_);
  at_ = end;
  return false;
}

Error BaseCopy::Shrank() const {
  return Error::Of(ErrorCode::kSyscall, "the image " + path_ + " shrank while it was read");
}

Status BaseCopy::Read(uint64_t length) {
  for (uint64_t done = 0; done < length;) {
    const ssize_t got = ::pread(image_.get(), buffer_.get() + done, length - done,
                                static_cast<off_t>(at_ + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return Error::FromErrno("pread", Text("the image %s, at %llu", path_.c_str(),
                                            static_cast<unsigned long long>(at_ + done)));
    }
    if (got == 0) return Shrank();
    done += static_cast<uint64_t>(got);
  }
  return {};
}

// What reads as zeros is sent as a hole, block by block: images that were made
// full of zeros, and devices, which know no holes, arrive sparse.
void BaseCopy::Split(uint64_t length) {
  for (uint64_t done = 0; done < length;) {
    const uint64_t block_end = (at_ + done) / kDiskBlockBytes * kDiskBlockBytes + kDiskBlockBytes;
    const uint64_t part = std::min(block_end - (at_ + done), length - done);
    const std::span<const std::byte> bytes(buffer_.get() + done, part);
    const bool zero = part % 4096 == 0 && IsZeroPage(bytes.data(), bytes.size());
    Add(zero ? DiskBaseBody::Kind::kHole : DiskBaseBody::Kind::kData, at_ + done, part,
        zero ? std::span<const std::byte>() : bytes);
    done += part;
  }
}

// Neighbours of a kind are one piece; data is contiguous in the buffer then.
void BaseCopy::Add(DiskBaseBody::Kind kind, uint64_t offset, uint64_t length,
                   std::span<const std::byte> data) {
  if (!pieces_.empty()) {
    Piece& last = pieces_.back();
    if (last.kind == kind && last.offset + last.length == offset) {
      last.length += length;
      if (!data.empty()) last.data = {last.data.data(), last.length};
      return;
    }
  }
  pieces_.push_back({kind, offset, length, data});
}

void BaseCopy::ReadAhead() {
  const uint64_t end = std::min(at_ + kReadAheadBytes, std::min(data_end_, range_end_));
  const uint64_t begin = std::max(at_, ahead_end_);
  // In large steps: each is a system call, and a request to the disk.
  if (end < begin + kReadAheadBytes / 2 && end < std::min(data_end_, range_end_)) return;
  if (begin >= end) return;
  ::posix_fadvise(image_.get(), static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                  POSIX_FADV_WILLNEED);
  ahead_end_ = end;
}

Result<std::span<const BaseCopy::Piece>> BaseCopy::Next() {
  pieces_.clear();
  while (pieces_.empty() && EnterRange()) {
    auto data = EnterData();
    if (!data.ok()) return data.error();
    if (!data.value()) continue;
    ReadAhead();
    const uint64_t step_end = (at_ / kDiskPieceBytesMax + 1) * kDiskPieceBytesMax;
    const uint64_t length = std::min({step_end, range_end_, data_end_}) - at_;
    HF_TRY(Read(length));
    Split(length);
    at_ += length;
    done_bytes_ += length;
  }
  if (pieces_.empty()) total_bytes_ = done_bytes_;
  return std::span<const Piece>(pieces_);
}

}  // namespace holdfast
