#include "receive/reference_disks.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/clock.h"
#include "base/result.h"

namespace holdfast {
namespace {

// Read together, and hashed while they are in the processor's cache.
constexpr size_t kBatchPages = 64;

// A disk's time: so much at first, for one that has to wake up or seek, and so much
// for each page that was referred to. Slower than 32 MB/s while the guest runs, and
// 128 MB/s while it waits, a network that is worth moving over is faster.
constexpr double kRoundGraceMs = 1'000;
constexpr double kRoundMsPerPage = 1.0 / kReferencesPerMsMin;
constexpr double kEpochGraceMs = 10;
constexpr double kEpochMsPerPage = 1.0 / 32;

uint64_t SizeOf(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return 0;
  if (S_ISREG(status.st_mode)) return static_cast<uint64_t>(status.st_size);
  uint64_t bytes = 0;
  if (!S_ISBLK(status.st_mode) || ::ioctl(fd, BLKGETSIZE64, &bytes) != 0) return 0;
  return bytes;
}

}  // namespace

ReferenceDisks::ReferenceDisks(std::span<const Disk> disks) {
  HF_ASSERT(disks.size() <= kReferenceDisksMax);
  for (const Disk& disk : disks) {
    // Not blocking: the path may have become a FIFO's.
    Descriptor file(disk.path.empty()
                        ? -1
                        : ::open(disk.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    const bool has = file.valid() && disk.bytes > 0 && SizeOf(file.get()) >= disk.bytes;
    bytes_.push_back(has ? disk.bytes : 0);
    files_.push_back(has ? std::move(file) : Descriptor());
  }
}

ReferenceReader::ReferenceReader(const ReferenceDisks& disks, uint32_t page_size, bool in_round)
    : disks_(disks),
      page_size_(page_size),
      grace_ms_(in_round ? kRoundGraceMs : kEpochGraceMs),
      ms_per_page_(in_round ? kRoundMsPerPage : kEpochMsPerPage) {}

const ReferenceReader::Missing& ReferenceReader::Read(std::span<const std::byte> payload,
                                                      std::span<const iovec> places) {
  missing_.indexes.clear();
  missing_.why = {};
  const size_t pages = payload.size() / DiskReference::kBytes;
  pages_seen_ += pages;
  size_t index = 0;
  for (const iovec& place : places) {
    for (size_t at = 0; at < place.iov_len; at += page_size_) {
      HF_ASSERT(index < pages);
      batch_.push_back({index, static_cast<std::byte*>(place.iov_base) + at,
                        ReferenceAt(payload, index)});
      index++;
      if (batch_.size() == kBatchPages) ReadBatch();
    }
  }
  ReadBatch();
  HF_ASSERT(index == pages);
  std::ranges::sort(missing_.indexes);  // in a batch, those that were not read came first
  return missing_;
}

void ReferenceReader::ReadBatch() {
  // What lies side by side on the disk and in memory is read at once.
  const auto follows = [this](const Page& page, const Page& last) {
    return page.reference.disk == last.reference.disk &&
           page.reference.offset == last.reference.offset + page_size_ &&
           page.place == last.place + page_size_;
  };
  read_.clear();
  read_index_.clear();
  for (size_t first = 0; first < batch_.size();) {
    size_t end = first + 1;
    while (end < batch_.size() && follows(batch_[end], batch_[end - 1])) end++;
    ReadExtent(first, end);
    first = end;
  }
  Verify();
  batch_.clear();
}

void ReferenceReader::ReadExtent(size_t first, size_t end) {
  const Page& page = batch_[first];
  const size_t bytes = (end - first) * page_size_;
  size_t done = 0;
  if (spent_ms_ <= grace_ms_ + ms_per_page_ * static_cast<double>(pages_seen_)) {
    const double started_ms = MonotonicMs();
    while (done < bytes) {
      const ssize_t got = ::pread(disks_.file(page.reference.disk), page.place + done, bytes - done,
                                  static_cast<off_t>(page.reference.offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;
      done += static_cast<size_t>(got);
    }
    spent_ms_ += MonotonicMs() - started_ms;
  }
  for (size_t i = first; i < end; i++) {
    if ((i - first + 1) * page_size_ <= done) {
      read_.push_back(batch_[i].place);
      read_index_.push_back(i);
    } else {
      missing_.indexes.push_back(batch_[i].index);
      missing_.why.unread++;
    }
  }
}

void ReferenceReader::Verify() {
  hashes_.resize(read_.size());
  HashContents(read_, page_size_, hashes_);
  for (size_t i = 0; i < read_.size(); i++) {
    const Page& page = batch_[read_index_[i]];
    if (hashes_[i] == page.reference.hash) continue;
    missing_.indexes.push_back(page.index);
    missing_.why.different++;
  }
}

}  // namespace holdfast
