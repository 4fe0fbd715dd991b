#include "wire/disk_reference.h"

#include <cinttypes>
#include <cstring>

#include "wire/text.h"

namespace holdfast {
namespace {

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, std::move(message));
}

}  // namespace

void PutReference(std::vector<std::byte>& to, const DiskReference& reference) {
  const size_t at = to.size();
  to.resize(at + DiskReference::kBytes);
  std::memcpy(&to[at], &reference.offset, 8);
  std::memcpy(&to[at + 8], &reference.disk, 4);
  std::memcpy(&to[at + 16], reference.hash.data(), reference.hash.size());
}

DiskReference DecodeReference(std::span<const std::byte, DiskReference::kBytes> bytes) {
  DiskReference reference;
  std::memcpy(&reference.offset, &bytes[0], 8);
  std::memcpy(&reference.disk, &bytes[8], 4);
  std::memcpy(reference.hash.data(), &bytes[16], reference.hash.size());
  return reference;
}

Status CheckReferences(std::span<const std::byte> payload, std::span<const uint64_t> disk_bytes,
                       uint32_t page_size) {
  for (size_t i = 0; i < payload.size() / DiskReference::kBytes; i++) {
    const auto bytes = payload.subspan(i * DiskReference::kBytes).first<DiskReference::kBytes>();
    const DiskReference reference = DecodeReference(bytes);
    if (reference.disk >= disk_bytes.size() || disk_bytes[reference.disk] == 0) {
      return Refused(Text("REFERENCES frame: reference %zu: disk %" PRIu32 " is unknown", i,
                          reference.disk));
    }
    if (reference.offset % kReferenceBlockBytes != 0) {
      return Refused(Text("REFERENCES frame: reference %zu: offset %" PRIu64
                          " is not a multiple of %" PRIu64,
                          i, reference.offset, kReferenceBlockBytes));
    }
    const uint64_t end = disk_bytes[reference.disk];
    if (reference.offset >= end || page_size > end - reference.offset) {
      return Refused(Text("REFERENCES frame: reference %zu: offset %" PRIu64
                          " is outside disk %" PRIu32 " of %" PRIu64 " bytes",
                          i, reference.offset, reference.disk, end));
    }
    uint32_t zero = 0;
    std::memcpy(&zero, &bytes[12], sizeof zero);
    if (zero != 0) {
      return Refused(Text("REFERENCES frame: reference %zu: bytes 12 to 15 are 0x%08" PRIx32
                          ", not 0",
                          i, zero));
    }
  }
  return {};
}

std::array<std::byte, WantedBody::kBytes> EncodeWanted(const WantedBody& wanted) {
  std::array<std::byte, WantedBody::kBytes> bytes;
  std::memcpy(&bytes[0], &wanted.different, 8);
  std::memcpy(&bytes[8], &wanted.unread, 8);
  return bytes;
}

WantedBody DecodeWanted(std::span<const std::byte, WantedBody::kBytes> bytes) {
  WantedBody wanted;
  std::memcpy(&wanted.different, &bytes[0], 8);
  std::memcpy(&wanted.unread, &bytes[8], 8);
  return wanted;
}

}  // namespace holdfast
