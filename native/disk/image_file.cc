#include "disk/image_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

namespace holdfast {
namespace {

int Allocate(int fd, int mode, uint64_t offset, uint64_t length) {
  while (::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) != 0) {
    if (errno != EINTR) return errno == ENOSYS || errno == ENODEV ? EOPNOTSUPP : errno;
  }
  return 0;
}

}  // namespace

Result<ImageFile> ImageFile::Open(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file.valid()) return Error::FromErrno("open", "the disk image " + path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return Error::FromErrno("fstat", "the disk image " + path);
  auto bytes = static_cast<uint64_t>(status.st_size);
  uint64_t sector_bytes = 1;
  const bool block_device = S_ISBLK(status.st_mode);
  if (block_device) {
    int sector = 0;
    if (::ioctl(file.get(), BLKGETSIZE64, &bytes) != 0 || ::ioctl(file.get(), BLKSSZGET, &sector) != 0) {
      return Error::FromErrno("ioctl", "size of the block device " + path);
    }
    sector_bytes = static_cast<uint64_t>(sector);
  } else if (!S_ISREG(status.st_mode)) {
    errno = EINVAL;
    return Error::FromErrno("open", path + " is neither a file nor a block device");
  }
  if (bytes == 0) {
    errno = EINVAL;
    return Error::FromErrno("open", "the disk image " + path + " is empty");
  }
  return ImageFile(std::move(file), bytes, sector_bytes, block_device, path);
}

Status ImageFile::Lock() {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kImageLockOffset;
  lock.l_len = 1;
  if (::fcntl(file_.get(), F_OFD_SETLK, &lock) == 0) return {};
  if (errno == EAGAIN || errno == EACCES) errno = EBUSY;
  return Error::FromErrno("fcntl", "the disk image " + path_ + " is in use by another process of Holdfast");
}

void ImageFile::Unlock() {
  struct flock lock {};
  lock.l_type = F_UNLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kImageLockOffset;
  lock.l_len = 1;
  ::fcntl(file_.get(), F_OFD_SETLK, &lock);
}

int ImageFile::Read(std::span<std::byte> target, uint64_t offset) const {
  while (!target.empty()) {
    const ssize_t got = ::pread(file_.get(), target.data(), target.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) return EIO;  // somebody has shortened it
    target = target.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return 0;
}

int ImageFile::Write(std::span<const std::byte> bytes, uint64_t offset) const {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(file_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return errno;
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return 0;
}

int ImageFile::Zero(uint64_t offset, uint64_t length, bool fast_only) const {
  // A device that cannot do it itself gets zeros written by the kernel.
  if (block_device_ && fast_only) return EOPNOTSUPP;
  const int failed = Allocate(file_.get(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
  // A device takes whole sectors only.
  if (failed == EINVAL && block_device_) return EOPNOTSUPP;
  if (failed != EOPNOTSUPP || block_device_) return failed;
  const int punched = Punch(offset, length);
  return punched != 0 ? punched : Allocate(file_.get(), FALLOC_FL_KEEP_SIZE, offset, length);
}

int ImageFile::Punch(uint64_t offset, uint64_t length) const {
  const int failed = Allocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  return failed == EINVAL && block_device_ ? EOPNOTSUPP : failed;
}

int ImageFile::Flush() const { return ::fdatasync(file_.get()) == 0 ? 0 : errno; }

void ImageFile::StartWriteback() const { ::sync_file_range(file_.get(), 0, 0, SYNC_FILE_RANGE_WRITE); }

ImageFile::Range ImageFile::Punchable(uint64_t offset, uint64_t length) const {
  const uint64_t first = (offset + sector_bytes_ - 1) / sector_bytes_ * sector_bytes_;
  const uint64_t end = (offset + length) / sector_bytes_ * sector_bytes_;
  return first < end ? Range{first, end - first} : Range{offset, 0};
}

bool ImageFile::knows_holes() const { return ::lseek(file_.get(), 0, SEEK_HOLE) >= 0; }

Result<ImageFile::Extent> ImageFile::ExtentAt(uint64_t offset) const {
  HF_ASSERT(offset < bytes_);
  const auto limited = [this](off_t end) {
    return static_cast<uint64_t>(end) < bytes_ ? static_cast<uint64_t>(end) : bytes_;
  };
  const off_t data = ::lseek(file_.get(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return Extent{bytes_, true};
  if (data < 0) return Error::FromErrno("lseek", "holes of the disk image " + path_);
  if (static_cast<uint64_t>(data) > offset) return Extent{limited(data), true};
  const off_t hole = ::lseek(file_.get(), static_cast<off_t>(offset), SEEK_HOLE);
  if (hole < 0) return Error::FromErrno("lseek", "holes of the disk image " + path_);
  // A hole that came up in between: said to be data, which is never wrong.
  return Extent{static_cast<uint64_t>(hole) > offset ? limited(hole) : offset + 1, false};
}

}  // namespace holdfast
