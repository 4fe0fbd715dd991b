#include "receive/reference_disks.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

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

// A read that takes so long hangs: meanwhile the session cannot be ended.
constexpr double kHangsMs = 1'000;

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
    files_.push_back(std::make_shared<const Descriptor>(has ? std::move(file) : Descriptor()));
  }
}

ReferenceReader::ReferenceReader(const ReferenceDisks& disks, PatientReader& reader,
                                 uint32_t page_size, bool in_round)
    : disks_(disks),
      reader_(reader),
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
  if (batch_.empty()) return;
  // What lies side by side on the disk and in memory is read at once.
  const auto follows = [this](const Page& page, const Page& last) {
    return page.reference.disk == last.reference.disk &&
           page.reference.offset == last.reference.offset + page_size_ &&
           page.place == last.place + page_size_;
  };
  std::vector<PatientReader::Extent> extents;
  extent_ends_.clear();
  for (size_t first = 0; first < batch_.size();) {
    size_t end = first + 1;
    while (end < batch_.size() && follows(batch_[end], batch_[end - 1])) end++;
    const DiskReference& begin = batch_[first].reference;
    extents.push_back({disks_.file(begin.disk), begin.offset, (end - first) * page_size_});
    extent_ends_.push_back(end);
    first = end;
  }
  // What is begun in time is waited for, on a busy host too, unless it hangs.
  const double left_ms =
      grace_ms_ + ms_per_page_ * static_cast<double>(pages_seen_) - spent_ms_;
  const double started_ms = MonotonicMs();
  const PatientReader::Got got =
      left_ms < 0 ? PatientReader::Got{std::vector<size_t>(extents.size()), nullptr}
                  : reader_.Read(std::move(extents), kHangsMs);
  spent_ms_ += MonotonicMs() - started_ms;
  read_.clear();
  read_index_.clear();
  size_t page = 0;
  for (size_t extent = 0; extent < extent_ends_.size(); extent++) {
    const size_t first = page;
    for (; page < extent_ends_[extent]; page++) {
      if ((page - first + 1) * page_size_ <= got.bytes[extent]) {
        std::memcpy(batch_[page].place, got.content + page * page_size_, page_size_);
        read_.push_back(batch_[page].place);
        read_index_.push_back(page);
      } else {
        missing_.indexes.push_back(batch_[page].index);
        missing_.why.unread++;
      }
    }
  }
  Verify();
  batch_.clear();
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
