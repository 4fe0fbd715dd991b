#include "disk/disk_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <vector>

#include "wire/text.h"

namespace holdfast {
namespace {

constexpr uint64_t kCopyBytes = uint64_t{1} << 20;

// Not a failure of the disk: this file, or the kernel, knows no such operation.
bool CannotBeDone(int error) {
  return error == EOPNOTSUPP || error == EINVAL || error == ENOSYS || error == ENODEV ||
         error == EXDEV;
}

}  // namespace

Result<std::unique_ptr<DiskFile>> DiskFile::Open(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file.valid()) return Error::FromErrno("open", "opening " + path);
  struct stat about {};
  if (::fstat(file.get(), &about) != 0) return Error::FromErrno("fstat", "opening " + path);
  auto bytes = static_cast<uint64_t>(about.st_size);
  const bool block_device = S_ISBLK(about.st_mode);
  if (block_device && ::ioctl(file.get(), BLKGETSIZE64, &bytes) != 0) {
    return Error::FromErrno("ioctl", "size of " + path);
  }
  if (!block_device && !S_ISREG(about.st_mode)) {
    return Error::Of(ErrorCode::kDisk, path + " is neither a regular file nor a block device");
  }
  return std::make_unique<DiskFile>(path, std::move(file), bytes, block_device);
}

Result<std::unique_ptr<DiskFile>> DiskFile::Create(const std::string& path, uint64_t bytes) {
  Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.valid()) {
    return Error::FromErrno("open", "creating " + path);
  }
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    return Error::FromErrno("ftruncate",
                            Text("creating %s with %" PRIu64 " bytes", path.c_str(), bytes));
  }
  return std::make_unique<DiskFile>(path, std::move(file), bytes, false);
}

Error DiskFile::Failed(const char* syscall, const char* doing, uint64_t offset) const {
  return Error::FromErrno(syscall, Text("%s %s, offset %" PRIu64, doing, path_.c_str(), offset));
}

Status DiskFile::Read(uint64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t got = ::pread(fd(), to.data(), to.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = EIO;  // ends before what it should have
    if (got <= 0) return Failed("pread", "reading", offset);
    offset += static_cast<uint64_t>(got);
    to = to.subspan(static_cast<size_t>(got));
  }
  return {};
}

Status DiskFile::Write(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put == 0) errno = ENOSPC;  // a block device's end
    if (put <= 0) return Failed("pwrite", "writing", offset);
    offset += static_cast<uint64_t>(put);
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
  return {};
}

// What the file system cannot punch is zeroed, what it cannot zero is written:
// a reader must find zeros in any case.
Status DiskFile::Zero(uint64_t offset, uint64_t bytes, bool hole) {
  const auto attempt = [&](int mode) {
    int failed;
    do {
      failed = ::fallocate(fd(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                           static_cast<off_t>(bytes));
    } while (failed != 0 && errno == EINTR);
    return failed == 0;
  };
  if (hole) {
    if (attempt(FALLOC_FL_PUNCH_HOLE)) return {};
    if (!CannotBeDone(errno)) return Failed("fallocate", "punching a hole into", offset);
  }
  if (attempt(FALLOC_FL_ZERO_RANGE)) return {};
  if (!CannotBeDone(errno)) return Failed("fallocate", "zeroing", offset);
  return WriteZeros(offset, bytes);
}

Status DiskFile::WriteZeros(uint64_t offset, uint64_t bytes) {
  const std::vector<std::byte> zeros(std::min(bytes, kCopyBytes));
  for (uint64_t done = 0; done < bytes; done += zeros.size()) {
    const uint64_t step = std::min<uint64_t>(zeros.size(), bytes - done);
    HF_TRY(DiskFile::Write(offset + done, std::span(zeros).first(step)));
  }
  return {};
}

Status DiskFile::CopyFrom(const DiskFile& from, uint64_t from_offset, uint64_t offset,
                          uint64_t bytes) {
  const uint64_t end = offset + bytes;
  auto in = static_cast<off_t>(from_offset);
  auto out = static_cast<off_t>(offset);
  while (static_cast<uint64_t>(out) < end) {
    const ssize_t put =
        ::copy_file_range(from.fd(), &in, fd(), &out, end - static_cast<uint64_t>(out), 0);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && !CannotBeDone(errno)) {
      return Failed("copy_file_range", "writing", static_cast<uint64_t>(out));
    }
    if (put <= 0) break;
  }
  offset = static_cast<uint64_t>(out);
  from_offset = static_cast<uint64_t>(in);
  std::vector<std::byte> buffer(std::min(end - offset, kCopyBytes));
  while (offset < end) {
    const auto part = std::span(buffer).first(std::min<uint64_t>(buffer.size(), end - offset));
    HF_TRY(from.Read(from_offset, part));
    HF_TRY(Write(offset, part));
    from_offset += part.size();
    offset += part.size();
  }
  return {};
}

void DiskFile::StartWriteback(uint64_t offset, uint64_t bytes) const {
  ::sync_file_range(fd(), static_cast<off_t>(offset), static_cast<off_t>(bytes),
                    SYNC_FILE_RANGE_WRITE);
}

Status DiskFile::Reserve() {
  int failed;
  do {
    failed = ::fallocate(fd(), 0, 0, static_cast<off_t>(bytes_));
  } while (failed != 0 && errno == EINTR);
  if (failed != 0 && !CannotBeDone(errno)) return Failed("fallocate", "reserving", 0);
  return {};
}

Status DiskFile::Sync() {
  // Not repeated: after a failure the kernel may have forgotten what was dirty.
  if (::fdatasync(fd()) != 0) return Failed("fdatasync", "syncing", 0);
  return {};
}

}  // namespace holdfast
