#include "disk/record.h"

#include "wire/digest.h"
#include "wire/text.h"

namespace holdfast {
namespace {

uint64_t DigestOf(RecordHeader header, std::span<const std::byte> data) {
  header.digest = 0;
  return HashBytes(data, HashBytes(std::as_bytes(std::span(&header, 1))));
}

}  // namespace

RecordHeader MakeRecord(RecordKind kind, uint64_t lsn, uint64_t offset, uint64_t length,
                        std::span<const std::byte> data) {
  RecordHeader header{.magic = kRecordMagic,
                      .kind = kind,
                      .zero = {},
                      .lsn = lsn,
                      .offset = offset,
                      .length = length,
                      .digest = 0};
  header.digest = DigestOf(header, data);
  return header;
}

Status CheckRecordHeader(const RecordHeader& header, uint64_t lsn, uint64_t image_bytes) {
  const auto wrong = [lsn](const char* what) {
    return Error::Of(ErrorCode::kProtocol, Text("no record at LSN %llu: %s",
                                                static_cast<unsigned long long>(lsn), what));
  };
  if (header.magic != kRecordMagic) return wrong("its magic is missing");
  if (header.lsn != lsn) return wrong("what lies there is of another position");
  if (header.zero[0] != 0 || header.zero[1] != 0 || header.zero[2] != 0) return wrong("reserved bytes are set");
  switch (header.kind) {
    case RecordKind::kWrite:
      if (header.length > kRecordDataBytesMax) return wrong("longer than any");
      break;
    case RecordKind::kZero:
    case RecordKind::kTrim:
      break;
    default:
      return wrong("unknown kind");
  }
  if (header.length == 0) return wrong("it is empty");
  if (header.offset > image_bytes || header.length > image_bytes - header.offset) {
    return wrong("it is beyond the disk's end");
  }
  return {};
}

Status CheckRecordDigest(const RecordHeader& header, std::span<const std::byte> data) {
  if (DigestOf(header, data) == header.digest) return {};
  return Error::Of(ErrorCode::kChecksum,
                   Text("the record at LSN %llu has another digest than its contents",
                        static_cast<unsigned long long>(header.lsn)));
}

}  // namespace holdfast
