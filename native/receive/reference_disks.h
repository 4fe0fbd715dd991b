// Disks that this side has as well as the primary, and pages that are read from
// them instead of from the network: each is what its hash says, or it is asked for.
//
//   REFERENCES ─► pread to where the pages belong ─► hash ─┬─ as in the reference: done
//                                                          └─ else: wanted
//
// Nothing that a disk does is an error of the connection. One that fails, hangs, or is
// slower than the network would be, costs what it was asked for in vain.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "receive/patient_reader.h"
#include "wire/disk_reference.h"

namespace holdfast {

class ReferenceDisks {
 public:
  // As the primary knows it: so long, under this path of ours. No path: we lack it.
  struct Disk {
    std::string path;
    uint64_t bytes = 0;
  };

  // A file or block device that is too short, or cannot be opened, is lacking.
  explicit ReferenceDisks(std::span<const Disk> disks);

  // By number; 0: lacking.
  std::span<const uint64_t> bytes() const { return bytes_; }
  // A read of it that hangs keeps it open.
  const std::shared_ptr<const Descriptor>& file(uint32_t disk) const { return files_[disk]; }

 private:
  std::vector<std::shared_ptr<const Descriptor>> files_;
  std::vector<uint64_t> bytes_;
};

// Of one receive thread.
class ReferenceReader {
 public:
  // Of a round while the guest runs, or of an epoch for which it stands still: then
  // a disk gets less time.
  // `reader`: of the receive thread, for a disk that hung in one round does in the next.
  ReferenceReader(const ReferenceDisks& disks, PatientReader& reader, uint32_t page_size,
                  bool in_round);

  struct Missing {
    std::vector<size_t> indexes;  // of the references, ascending
    WantedBody why;
  };
  // Reads what CheckReferences has let through; `places` are as long as the pages
  // together. What is missing afterwards has any content. Good until the next call.
  const Missing& Read(std::span<const std::byte> payload, std::span<const iovec> places);

 private:
  struct Page {
    size_t index;
    std::byte* place;
    DiskReference reference;
  };
  void ReadBatch();
  void Verify();

  const ReferenceDisks& disks_;
  PatientReader& reader_;
  const uint32_t page_size_;
  const double grace_ms_;
  const double ms_per_page_;
  double spent_ms_ = 0;
  uint64_t pages_seen_ = 0;

  std::vector<Page> batch_;
  std::vector<size_t> extent_ends_;     // of the batch, as indexes in it
  std::vector<const std::byte*> read_;  // of the batch, with their index in it
  std::vector<size_t> read_index_;
  std::vector<ContentHash> hashes_;
  Missing missing_;
};

}  // namespace holdfast
