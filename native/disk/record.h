// One record of a disk's log (ring_layout.h): made by the disk server, verified
// by whoever reads the log, applied by the backup.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "disk/ring_layout.h"

namespace holdfast {

// `data`: what is written, unpadded; empty for the other kinds.
RecordHeader MakeRecord(RecordKind kind, uint64_t lsn, uint64_t offset, uint64_t length,
                        std::span<const std::byte> data);

// Is this the head of a record at `lsn` of a disk of that size? Its digest, and
// with it the rest of it, is not looked at. kProtocol otherwise.
Status CheckRecordHeader(const RecordHeader& header, uint64_t lsn, uint64_t image_bytes);

// The digest over a header that was checked and its `data` (`length` bytes for
// kWrite, else none). kChecksum otherwise.
Status CheckRecordDigest(const RecordHeader& header, std::span<const std::byte> data);

}  // namespace holdfast
