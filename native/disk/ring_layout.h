// The log of one disk's writes, in memory that the disk server (the nbdkit
// plugin, which appends) and the primary's addon (which ships) both map.
//
//   file: | RingHeader, one page | ring_bytes of records, a circle |
//
// A position in the log is an LSN: bytes ever appended, never reused, at
// `lsn % ring_bytes` in the circle. Records lie at [tail, head); the space of
// others is free. A record may run over the circle's end: map the circle twice,
// one after the other. A position is shipped as it lies there, and space is
// given back (tail) only when the backup has said that it has received it: until
// then the kernel may still read it (DESIGN part 3, no torn pages).
//
// The same records, byte for byte, travel and lie in the backup's journal.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace holdfast {

inline constexpr char kRingMagic[8] = {'H', 'F', 'D', 'R', 'I', 'N', 'G', '1'};
inline constexpr uint32_t kRingVersion = 1;
inline constexpr size_t kRingHeaderBytes = 4096;
inline constexpr uint64_t kRingBytesMin = uint64_t{4} << 20;
inline constexpr uint64_t kRingBytesMax = uint64_t{4} << 30;

// All fields are zero until the server has filled in the rest; magic is written last.
struct RingHeader {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint64_t ring_bytes;   // a power of two
  uint64_t image_bytes;  // of the disk

  // The server's. `head`: records below it are complete, and their writes are
  // in the image. `head_wakes` is a futex, added to with each publication.
  alignas(64) std::atomic<uint64_t> head;
  std::atomic<uint32_t> head_wakes;
  std::atomic<uint32_t> logging;  // 0: writes are only marked in the map

  // The addon's. `head_waits`: it sleeps on head_wakes. `tail_wakes` is a futex.
  alignas(64) std::atomic<uint64_t> tail;
  std::atomic<uint32_t> tail_wakes;
  std::atomic<uint32_t> head_waits;

  // Set by the addon right before QEMU is told to stop, cleared when the stop
  // has been answered: the half of the circle that is kept free is for the
  // writes that QEMU then drains, and its flush is answered before it is done
  // (docs/disk.md, "Flushes").
  alignas(64) std::atomic<uint32_t> stop_pending;
  std::atomic<uint32_t> tail_waits;     // writers of the server that sleep on tail_wakes
  std::atomic<uint64_t> flushes_owed;   // answered early
  std::atomic<uint64_t> flushes_paid;   // of these, done since
};
static_assert(sizeof(RingHeader) <= kRingHeaderBytes);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

inline constexpr uint32_t kRecordMagic = 0x52444648;  // "HFDR"
// A larger write is several records.
inline constexpr uint64_t kRecordDataBytesMax = uint64_t{1} << 20;

enum class RecordKind : uint8_t {
  kWrite = 1,  // `length` bytes of data follow, padded with zeros to a multiple of 8
  kZero = 2,   // the range reads as zeros and stays allocated
  kTrim = 3,   // the range reads as zeros and is a hole
};

struct RecordHeader {
  uint32_t magic;
  RecordKind kind;
  uint8_t zero[3];
  uint64_t lsn;     // of this header: a circle's older lap is not taken for this one
  uint64_t offset;  // in the disk
  uint64_t length;  // of the range
  uint64_t digest;  // xxh3-64 of the data, seeded with xxh3-64 of this header with digest 0
};
static_assert(sizeof(RecordHeader) == 40);

inline constexpr uint64_t RecordBytes(RecordKind kind, uint64_t length) {
  return sizeof(RecordHeader) + (kind == RecordKind::kWrite ? (length + 7) / 8 * 8 : 0);
}

}  // namespace holdfast
