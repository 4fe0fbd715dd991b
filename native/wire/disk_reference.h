// What a REFERENCES frame says of each of its pages: a disk that both sides have,
// where in it the page's content also stands, and the content's strong hash
// (docs/wire-protocol.md). And what the backup answers if it does not find it there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "wire/content_hash.h"

namespace holdfast {

// Disks of one session that may be referred to; by their number in it.
inline constexpr uint32_t kReferenceDisksMax = 16;
// What offsets are multiples of, whatever the size of a page.
inline constexpr uint64_t kReferenceBlockBytes = 4096;

// A backup takes no longer to read the disks: 32 MB/s, or it asks instead. So much
// longer it may be silent.
inline constexpr uint32_t kReferencesPerMsMin = 8;

// Payload of one REFERENCES frame.
inline constexpr uint64_t kReferencesBytesMax = uint64_t{128} << 10;

struct DiskReference {
  static constexpr size_t kBytes = 32;
  uint64_t offset = 0;
  uint32_t disk = 0;
  ContentHash hash{};
};
void PutReference(std::vector<std::byte>& to, const DiskReference& reference);
DiskReference DecodeReference(std::span<const std::byte, DiskReference::kBytes> bytes);
inline DiskReference ReferenceAt(std::span<const std::byte> payload, size_t index) {
  return DecodeReference(
      payload.subspan(index * DiskReference::kBytes).first<DiskReference::kBytes>());
}

// Every reference of a payload of whole ones lies inside a disk. `disk_bytes`: of
// the session's disks by number, 0 of one that this side lacks.
Status CheckReferences(std::span<const std::byte> payload, std::span<const uint64_t> disk_bytes,
                       uint32_t page_size);

// Of WANTED: why the pages in its table are asked for.
struct WantedBody {
  static constexpr size_t kBytes = 16;
  uint64_t different = 0;  // the disk has something else there
  uint64_t unread = 0;     // the disk could not be read, or not soon enough
};
std::array<std::byte, WantedBody::kBytes> EncodeWanted(const WantedBody& wanted);
WantedBody DecodeWanted(std::span<const std::byte, WantedBody::kBytes> bytes);

}  // namespace holdfast
