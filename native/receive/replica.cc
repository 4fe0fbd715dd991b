#include "receive/replica.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cinttypes>
#include <cstring>

#include "wire/text.h"

namespace holdfast {
namespace {

Status RemoveOld(const std::string& path) {
  struct stat about {};
  if (::lstat(path.c_str(), &about) != 0) {
    if (errno == ENOENT) return {};
    return Error::FromErrno("lstat", "replica " + path);
  }
  if (!S_ISREG(about.st_mode)) {
    return Error{ErrorCode::kSyscall, EEXIST, "open",
                 "replica " + path + ": exists and is not a regular file"};
  }
  if (::unlink(path.c_str()) != 0) return Error::FromErrno("unlink", "replica " + path);
  return {};
}

// Reserved now, so that no write to the mapping can ever meet a full tmpfs.
// Sparse it can; the VM that needs it runs within milliseconds, whatever its size.
Status ReserveMemory(int fd, const std::string& path, uint64_t bytes, bool sparse) {
  struct statfs fs {};
  if (::fstatfs(fd, &fs) != 0) return Error::FromErrno("fstatfs", "replica " + path);
  const auto block_bytes = static_cast<uint64_t>(fs.f_bsize);
  if (bytes % block_bytes != 0) {
    return Error::Of(ErrorCode::kLimit,
                     Text("replica %s: %" PRIu64 " bytes is not a multiple of its page size, %" PRIu64,
                          path.c_str(), bytes, block_bytes));
  }
  if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    return Error::FromErrno("ftruncate", "replica " + path);
  }
  int failed;
  if (sparse) {
    // A tmpfs without a limit has no blocks.
    failed = fs.f_blocks > 0 && fs.f_bavail * block_bytes < bytes ? -1 : 0;
    errno = ENOSPC;
  } else {
    do {
      failed = ::fallocate(fd, 0, 0, static_cast<off_t>(bytes));
    } while (failed != 0 && errno == EINTR);
  }
  if (failed == 0) return {};
  const ErrorCode code =
      errno == ENOSPC || errno == ENOMEM ? ErrorCode::kNoSpace : ErrorCode::kSyscall;
  return Error::FromErrno(
      sparse ? "statfs" : "fallocate",
      Text("replica %s: %" PRIu64 " bytes wanted, %" PRIu64 " of %" PRIu64 " free", path.c_str(),
           bytes, fs.f_bavail * block_bytes, fs.f_blocks * block_bytes),
      code);
}

}  // namespace

Result<Replica> Replica::Create(const std::string& path, uint64_t ram_bytes, uint32_t page_size,
                                bool sparse) {
  HF_TRY(RemoveOld(path));
  Descriptor file(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.valid()) {
    // hugetlbfs and tmpfs without a free inode say so here: no space.
    return Error::FromErrno("open", "replica " + path);
  }
  const Status reserved = ReserveMemory(file.get(), path, ram_bytes, sparse);
  if (!reserved.ok()) {
    ::unlink(path.c_str());
    return reserved.error();
  }
  void* memory =
      ::mmap(nullptr, ram_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) {
    const Error error = Error::FromErrno("mmap", "replica " + path, ErrorCode::kNoSpace);
    ::unlink(path.c_str());
    return error;
  }
  struct statfs fs {};
  const bool writable = ::fstatfs(file.get(), &fs) == 0 && fs.f_type != HUGETLBFS_MAGIC;
  // Of a hugetlbfs the mapping has reserved what it needs.
  return Replica(path, writable ? std::move(file) : Descriptor(), Mapping(memory, ram_bytes),
                 ram_bytes, page_size, !sparse || !writable);
}

Status Replica::Reserve() {
  if (reserved_) return {};
  HF_TRY(ReserveMemory(file_.get(), path_, memory_.size(), false));
  reserved_ = true;
  return {};
}

void Replica::Place(std::span<const std::byte> table, std::vector<FilePart>& parts) {
  parts.clear();
  WireRun run;
  for (RunCursor runs(table); runs.Next(run);) {
    written_.Add(run.first_page, run.pages);
    parts.push_back({run.first_page * page_size_, uint64_t{run.pages} * page_size_});
  }
}

void Replica::Place(std::span<const std::byte> table, std::vector<iovec>& parts) {
  parts.clear();
  WireRun run;
  for (RunCursor runs(table); runs.Next(run);) {
    written_.Add(run.first_page, run.pages);
    parts.push_back({At(run.first_page), size_t{run.pages} * page_size_});
  }
}

void Replica::Zero(std::span<const std::byte> table) {
  WireRun run;
  for (RunCursor runs(table); runs.Next(run);) ZeroRun(run);
}

// Pages never written are zero already: most of a first round's zero pages.
void Replica::ZeroRun(const WireRun& run) {
  for (uint64_t page = run.first_page; page < run.first_page + run.pages; page++) {
    if (written_.Test(page)) std::memset(At(page), 0, page_size_);
  }
}

void Replica::Apply(const EpochStaging& epoch, const std::atomic<bool>& abandon) {
  for (const EpochStaging::Segment& segment : epoch.segments()) {
    if (abandon.load(std::memory_order_relaxed)) return;
    const auto table = epoch.table(segment);
    if (segment.zero) {
      Zero(table);
      continue;
    }
    const std::byte* from = epoch.pages(segment);
    WireRun run;
    for (RunCursor runs(table); runs.Next(run);) {
      const size_t bytes = size_t{run.pages} * page_size_;
      written_.Add(run.first_page, run.pages);
      std::memcpy(At(run.first_page), from, bytes);
      from += bytes;
    }
  }
}

}  // namespace holdfast
