// Where on the disks a page's content also stands: each block of 4 KiB of their
// images, by the hash of what is in it.
//
//   images ── own thread, once ──► table ◄── Find(page): sending threads
//
// The images are read when a migration begins, so nothing has to be remembered while
// the VM runs, and a disk counts whoever filled it. Holes are not read; what the
// page cache has comes first, and what it did not have does not stay in it.
//
// The hash here only finds candidates (xxh3, some GB/s): what is sent of one that was
// found is the strong hash of the page itself, and the other side looks for that.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "base/thread.h"

namespace holdfast {

class DiskIndex {
 public:
  struct Disk {
    uint32_t number = 0;  // by which the backup knows it
    std::string path;
    uint64_t bytes = 0;
  };
  struct Place {
    uint64_t offset = 0;
    uint32_t disk = 0;
  };
  // So far.
  struct Progress {
    bool ended = false;
    uint64_t data_bytes = 0;  // that the images have
    uint64_t read_bytes = 0;
    uint64_t blocks = 0;  // of different content, in the table
    double millis = 0;
    std::optional<Error> error{};  // why it has ended before all was read
  };

  // Begins to read. The table takes 24 to 48 bytes for each block of 4 KiB of data,
  // at most `table_bytes_max`: what does not fit is not found.
  static Result<std::unique_ptr<DiskIndex>> Start(std::span<const Disk> disks,
                                                  uint64_t table_bytes_max);
  ~DiskIndex();
  DiskIndex(const DiskIndex&) = delete;
  DiskIndex& operator=(const DiskIndex&) = delete;

  // A block that had the content of these 4 KiB, if one was read already. Any thread.
  std::optional<Place> Find(const std::byte* page) const;

  // Until all is read, for so long at most. kCancelled.
  Status AwaitEnd(int timeout_ms, const CancelSignal& cancel) const;
  Progress progress() const;

 private:
  struct Slot {
    std::atomic<uint64_t> hash;   // 0: empty
    std::atomic<uint64_t> place;  // written before the hash
  };
  struct Image {
    Disk disk;
    Descriptor file;
  };
  struct Piece {
    size_t image;
    uint64_t offset;
    uint32_t bytes;
  };

  DiskIndex(std::vector<Image> images, uint64_t data_bytes, Mapping table);
  void Build();
  void FindPieces(size_t image, std::vector<Piece>& cached, std::vector<Piece>& others) const;
  Status ReadPiece(const Piece& piece, bool was_cached, std::byte* buffer);
  void AddBlocks(const Piece& piece, const std::byte* bytes, uint64_t count);
  void Add(uint64_t hash, uint64_t place);
  bool full() const { return used_ > slots_ / 4 * 3; }

  const std::vector<Image> images_;
  const Mapping table_;
  const uint64_t slots_;  // a power of two
  uint64_t used_ = 0;     // its thread's
  const double started_ms_;
  std::atomic<bool> stop_{false};
  CancelSignal ended_;
  mutable std::mutex mutex_;
  Progress progress_;
  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
