#include "checkpoint/copy_sparse.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/descriptor.h"
#include "checkpoint/whole_io.h"
#include "send/zero_page.h"

namespace holdfast {
namespace {

constexpr uint64_t kPieceBytes = 8ull << 20;  // between two looks at the cancel signal
constexpr uint64_t kBlockBytes = 4096;

struct File {
  const Descriptor& descriptor;
  const std::string& path;
};

// By reads and writes: for block devices, and kernels or file systems without
// copy_file_range between the two. What is zero becomes a hole.
Status CopyByHand(const File& from, const File& to, uint64_t offset, uint64_t bytes,
                  std::vector<std::byte>& buffer) {
  buffer.resize(std::min(kPieceBytes, bytes));
  HF_TRY(ReadAll(from.descriptor.get(), buffer.data(), bytes, offset, from.path));
  for (uint64_t begin = 0; begin < bytes;) {
    const uint64_t block = std::min(kBlockBytes, bytes - begin);
    if (block == kBlockBytes && IsZeroPage(buffer.data() + begin, block)) {
      begin += block;
      continue;
    }
    uint64_t end = begin + block;
    while (end + kBlockBytes <= bytes && !IsZeroPage(buffer.data() + end, kBlockBytes)) {
      end += kBlockBytes;
    }
    HF_TRY(WriteAll(to.descriptor.get(), buffer.data() + begin, end - begin, offset + begin, to.path));
    begin = end;
  }
  return {};
}

Status CopyRange(const File& from, const File& to, uint64_t offset, uint64_t end,
                 const CancelSignal& cancel) {
  std::vector<std::byte> buffer;
  bool in_kernel = true;
  while (offset < end) {
    if (cancel.cancelled()) return Error::Of(ErrorCode::kCancelled, "copying a disk was cancelled");
    const uint64_t bytes = std::min(kPieceBytes, end - offset);
    if (in_kernel) {
      auto in = static_cast<off64_t>(offset);
      auto out = in;
      const ssize_t copied =
          ::copy_file_range(from.descriptor.get(), &in, to.descriptor.get(), &out, bytes, 0);
      if (copied > 0) {
        offset += static_cast<uint64_t>(copied);
        continue;
      }
      if (copied < 0 && errno == EINTR) continue;
      const bool impossible = copied == 0 || errno == EXDEV || errno == EINVAL ||
                              errno == EOPNOTSUPP || errno == ENOSYS;
      if (!impossible) return Error::FromErrno("copy_file_range", to.path);
      in_kernel = false;
    }
    HF_TRY(CopyByHand(from, to, offset, bytes, buffer));
    offset += bytes;
  }
  return {};
}

}  // namespace

Result<CopiedFile> CopySparse(const std::string& from_path, const std::string& to_path,
                              const CancelSignal& cancel) {
  const Descriptor from_file(::open(from_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from_file.valid()) return Error::FromErrno("open", from_path);
  const Descriptor to_file(
      ::open(to_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!to_file.valid()) return Error::FromErrno("open", to_path);
  const File from{from_file, from_path};
  const File to{to_file, to_path};
  // A block device's length is where its end is.
  const off_t length = ::lseek(from_file.get(), 0, SEEK_END);
  if (length < 0) return Error::FromErrno("lseek", from_path);
  CopiedFile copied;
  copied.bytes = static_cast<uint64_t>(length);
  copied.shared = ::ioctl(to_file.get(), FICLONE, from_file.get()) == 0;
  if (!copied.shared) {
    if (::ftruncate(to_file.get(), length) != 0) return Error::FromErrno("ftruncate", to_path);
    for (off_t at = 0; at < length;) {
      off_t data = ::lseek(from_file.get(), at, SEEK_DATA);
      if (data < 0 && errno == ENXIO) break;  // holes to the end
      off_t hole = data < 0 ? length : ::lseek(from_file.get(), data, SEEK_HOLE);
      if (data < 0 && errno == EINVAL) data = at;  // a device: all of it may be data
      if (data < 0 || hole < 0) return Error::FromErrno("lseek", from_path);
      hole = std::min(hole, length);
      HF_TRY(CopyRange(from, to, static_cast<uint64_t>(data), static_cast<uint64_t>(hole), cancel));
      copied.data_bytes += static_cast<uint64_t>(hole - data);
      at = hole;
    }
  }
  if (::fsync(to_file.get()) != 0) return Error::FromErrno("fsync", to_path);
  return copied;
}

}  // namespace holdfast
