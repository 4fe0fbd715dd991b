#include "send/disk_index.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/clock.h"
#include "base/kernel_abi.h"
#include "send/zero_page.h"
#include "wire/digest.h"
#include "wire/disk_reference.h"

namespace holdfast {
namespace {

constexpr uint64_t kBlockBytes = kReferenceBlockBytes;
constexpr uint32_t kPieceBytes = 1 << 20;
constexpr uint64_t kSlotsMin = 2048;
// It is full, or not, between two pieces: a slot stays empty, or no search ends.
static_assert(kPieceBytes / kBlockBytes < kSlotsMin / 4);
constexpr unsigned kDiskShift = 48;  // of a place: disk, and number of the block

Result<uint64_t> DataBytes(int fd, const DiskIndex::Disk& disk) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return Error::FromErrno("fstat", disk.path);
  if (S_ISBLK(status.st_mode)) return disk.bytes;
  if (S_ISREG(status.st_mode)) {
    return std::min<uint64_t>(disk.bytes, static_cast<uint64_t>(status.st_blocks) * 512);
  }
  return Error::Of(ErrorCode::kUnsupported, disk.path + " is neither a file nor a block device");
}

// Pages of the range in the page cache; none if the kernel does not tell.
uint64_t CachedPages(int fd, uint64_t offset, uint64_t bytes) {
  const abi::CachestatRange range{offset, bytes};
  abi::Cachestat counts{};
  if (::syscall(abi::kNrCachestat, fd, &range, &counts, 0) != 0) return 0;
  return counts.nr_cache;
}

// 0 marks an empty slot.
uint64_t HashOf(const std::byte* block) {
  return std::max<uint64_t>(1, HashBytes({block, kBlockBytes}));
}

}  // namespace

Result<std::unique_ptr<DiskIndex>> DiskIndex::Start(std::span<const Disk> disks,
                                                    uint64_t table_bytes_max) {
  std::vector<Image> images;
  uint64_t data_bytes = 0;
  for (const Disk& disk : disks) {
    Descriptor file(::open(disk.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.valid()) return Error::FromErrno("open", "the image " + disk.path);
    auto bytes = DataBytes(file.get(), disk);
    if (!bytes.ok()) return bytes.error();
    data_bytes += bytes.value();
    images.push_back({disk, std::move(file)});
  }
  // Three quarters full at most, and a power of two.
  const uint64_t wanted = data_bytes / kBlockBytes * 3 / 2;
  const uint64_t slots_max = std::bit_floor(table_bytes_max / sizeof(Slot));
  const uint64_t slots = std::max(kSlotsMin, std::min(std::bit_ceil(wanted), slots_max));
  const size_t table_bytes = slots * sizeof(Slot);
  void* table = ::mmap(nullptr, table_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (table == MAP_FAILED) {
    return Error::FromErrno("mmap", "the index of the disks", ErrorCode::kNoSpace);
  }
  // A hint: each look into the table is a page of its own.
  ::madvise(table, table_bytes, MADV_HUGEPAGE);
  return std::unique_ptr<DiskIndex>(
      new DiskIndex(std::move(images), data_bytes, Mapping(table, table_bytes)));
}

DiskIndex::DiskIndex(std::vector<Image> images, uint64_t data_bytes, Mapping table)
    : images_(std::move(images)),
      table_(std::move(table)),
      slots_(table_.size() / sizeof(Slot)),
      started_ms_(MonotonicMs()) {
  progress_.data_bytes = data_bytes;
  thread_ = Thread("hf-disk-index", [this] { Build(); });
}

DiskIndex::~DiskIndex() {
  stop_ = true;
  thread_.Join();
}

std::optional<DiskIndex::Place> DiskIndex::Find(const std::byte* page) const {
  const auto* slots = reinterpret_cast<const Slot*>(table_.data());
  const uint64_t hash = HashOf(page);
  for (uint64_t i = hash & (slots_ - 1);; i = (i + 1) & (slots_ - 1)) {
    const uint64_t found = slots[i].hash.load(std::memory_order_acquire);
    if (found == 0) return std::nullopt;
    if (found != hash) continue;
    const uint64_t place = slots[i].place.load(std::memory_order_relaxed);
    return Place{(place & ((uint64_t{1} << kDiskShift) - 1)) * kBlockBytes,
                 static_cast<uint32_t>(place >> kDiskShift)};
  }
}

Status DiskIndex::AwaitEnd(int timeout_ms, const CancelSignal& cancel) const {
  const double deadline_ms = MonotonicMs() + timeout_ms;
  while (!ended_.cancelled()) {
    if (cancel.cancelled()) return Error::Of(ErrorCode::kCancelled, "disk index: cancelled");
    const double left_ms = deadline_ms - MonotonicMs();
    if (left_ms <= 0) return {};
    pollfd polled[2] = {{ended_.fd(), POLLIN, 0}, {cancel.fd(), POLLIN, 0}};
    ::poll(polled, 2, static_cast<int>(left_ms) + 1);
  }
  return {};
}

DiskIndex::Progress DiskIndex::progress() const {
  const std::lock_guard lock(mutex_);
  Progress progress = progress_;
  if (!progress.ended) progress.millis = MonotonicMs() - started_ms_;
  return progress;
}

void DiskIndex::Build() {
  const std::unique_ptr<std::byte[]> buffer(new std::byte[kPieceBytes]);
  std::vector<Piece> cached;
  std::vector<Piece> others;
  for (size_t i = 0; i < images_.size(); i++) FindPieces(i, cached, others);
  const auto read = [&](const std::vector<Piece>& pieces, bool was_cached) -> Status {
    for (const Piece& piece : pieces) {
      if (stop_ || full()) return {};
      HF_TRY(ReadPiece(piece, was_cached, buffer.get()));
    }
    return {};
  };
  Status done = read(cached, true);
  if (done.ok()) done = read(others, false);
  {
    const std::lock_guard lock(mutex_);
    progress_.ended = true;
    progress_.millis = MonotonicMs() - started_ms_;
    if (!done.ok()) progress_.error = done.error();
  }
  ended_.Cancel();
}

// Data only, in pieces.
void DiskIndex::FindPieces(size_t image, std::vector<Piece>& cached,
                           std::vector<Piece>& others) const {
  const int fd = images_[image].file.get();
  const uint64_t end = images_[image].disk.bytes;
  for (uint64_t at = 0; at < end && !stop_;) {
    const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return;
    // A block device: it knows no holes.
    uint64_t data_end = end;
    if (data >= 0) {
      at = static_cast<uint64_t>(data) / kBlockBytes * kBlockBytes;
      const off_t hole = ::lseek(fd, data, SEEK_HOLE);
      if (hole > data) data_end = std::min(end, static_cast<uint64_t>(hole));
    }
    for (; at < data_end && !stop_; at = at / kPieceBytes * kPieceBytes + kPieceBytes) {
      const uint64_t piece_end = std::min(data_end, at / kPieceBytes * kPieceBytes + kPieceBytes);
      const auto bytes = static_cast<uint32_t>(piece_end - at);
      // Some of it may be there for having been read ahead, by whoever read before it.
      const bool is_cached = CachedPages(fd, at, bytes) * kBlockBytes * 2 >= bytes;
      (is_cached ? cached : others).push_back({image, at, bytes});
    }
    at = data_end;
  }
}

Status DiskIndex::ReadPiece(const Piece& piece, bool was_cached, std::byte* buffer) {
  const Image& image = images_[piece.image];
  uint64_t done = 0;
  while (done < piece.bytes) {
    const ssize_t got = ::pread(image.file.get(), buffer + done, piece.bytes - done,
                                static_cast<off_t>(piece.offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::FromErrno("pread", "the image " + image.disk.path);
    if (got == 0) break;  // it has become shorter
    done += static_cast<uint64_t>(got);
  }
  if (!was_cached) {
    ::posix_fadvise(image.file.get(), static_cast<off_t>(piece.offset), piece.bytes,
                    POSIX_FADV_DONTNEED);
  }
  AddBlocks(piece, buffer, done / kBlockBytes);
  const std::lock_guard lock(mutex_);
  progress_.read_bytes += done;
  progress_.blocks = used_;
  return {};
}

// Zeros are sent as such.
void DiskIndex::AddBlocks(const Piece& piece, const std::byte* bytes, uint64_t count) {
  const uint64_t disk = uint64_t{images_[piece.image].disk.number} << kDiskShift;
  for (uint64_t i = 0; i < count; i++) {
    const std::byte* block = bytes + i * kBlockBytes;
    if (IsZeroPage(block, kBlockBytes)) continue;
    Add(HashOf(block), disk | (piece.offset / kBlockBytes + i));
  }
}

// The first of equal blocks stays.
void DiskIndex::Add(uint64_t hash, uint64_t place) {
  auto* slots = reinterpret_cast<Slot*>(table_.data());
  for (uint64_t i = hash & (slots_ - 1);; i = (i + 1) & (slots_ - 1)) {
    const uint64_t found = slots[i].hash.load(std::memory_order_relaxed);
    if (found == hash) return;
    if (found != 0) continue;
    slots[i].place.store(place, std::memory_order_relaxed);
    slots[i].hash.store(hash, std::memory_order_release);
    used_++;
    return;
  }
}

}  // namespace holdfast
