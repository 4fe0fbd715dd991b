// Frames of the bulk connection: layout, limits, bodies (docs/wire-protocol.md).
//
//   | header, 40 bytes | table, tableBytes | payload, payloadBytes |
//
// Pure functions over spans. Decoding checks everything that can be known from
// the bytes at hand, before anyone allocates by what they say; what depends on
// the frames before is FrameDecoder's.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace holdfast {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");

inline constexpr uint32_t kWireVersion = 4;
inline constexpr uint32_t kFrameMagic = 0x31424648;
inline constexpr size_t kFrameHeaderBytes = 40;
inline constexpr uint32_t kTableBytesMax = 1 << 20;
inline constexpr uint64_t kPagesBytesMax = uint64_t{64} << 20;
inline constexpr size_t kErrorBytesMax = 1024;
// Epoch numbers reach JavaScript as numbers: the largest exact integer there.
inline constexpr uint64_t kEpochMax = (uint64_t{1} << 53) - 1;
// Bulk connections of one session at a time.
inline constexpr uint16_t kStreamsMax = 16;
// Of one epoch: what was sent ahead of the pause, and what the pause found. The
// receiver keeps a bit per page of RAM for each.
inline constexpr uint32_t kSlicesMax = 64;

inline constexpr uint16_t kFlagBase = 1;  // BEGIN: a base round, not an epoch

enum class FrameType : uint16_t {
  kHello = 1,
  kHelloOk = 2,
  kBegin = 3,
  kPages = 4,
  kZero = 5,
  kPrefix = 6,
  kDevice = 7,
  kCommit = 8,
  kEndRound = 9,
  kAck = 10,
  kRoundOk = 11,
  kError = 12,
  kEndPart = 13,
  kDeviceDelta = 14,
  kAbandon = 15,
  kAbandoned = 16,
  kDiskState = 17,  // the disk stream's, from here on: wire/disk_frame.h
  kDiskMarks = 18,
  kDiskSync = 19,
  kDiskBase = 20,
  kDiskLog = 21,
  kDiskSynced = 22,
  kDiskReady = 23,
  kDiskBoundary = 24,
  kDiskReceived = 25,
  kReferences = 26,  // pages whose content a disk has: wire/disk_reference.h
  kWanted = 27,      // and those that the backup did not find there
  kPrefixAhead = 28,  // in a base round: kept aside,
  kPrefixKept = 29,   // until an epoch has it in place of PREFIX
  kPageList = 32,  // the page stream's, from here on: wire/page_frame.h
  kPageLacks = 33,
  kPageDemand = 34,
  kPageData = 35,
  kPageZero = 36,
  kPagesHave = 37,
};

const char* FrameName(FrameType type);

struct FrameHeader {
  FrameType type = FrameType::kError;
  uint16_t flags = 0;
  uint64_t epoch = 0;
  uint32_t table_bytes = 0;
  uint32_t slice = 0;  // of PAGES and ZERO: a later one's pages replace an earlier one's
  uint64_t payload_bytes = 0;
};

using HeaderBytes = std::array<std::byte, kFrameHeaderBytes>;

HeaderBytes EncodeHeader(const FrameHeader& header);

// Magic, hash, type, flags, slice, and the sizes' limits by type.
// `device_bytes_max` bounds PREFIX, DEVICE and DEVICE_DELTA, and the prefix in
// PREFIX_AHEAD.
Result<FrameHeader> DecodeHeader(std::span<const std::byte, kFrameHeaderBytes> bytes,
                                 uint64_t device_bytes_max);

struct HelloBody {
  static constexpr size_t kBytes = 64;
  static constexpr size_t kVersion1Bytes = 48;  // so that version 1 learns what it is refused for
  static constexpr uint32_t kFlagVerify = 1;
  static constexpr uint32_t kFlagDisks = 2;  // the disk stream: its number is 0, and it has a link
  static constexpr uint32_t kFlagPages = 4;  // the page stream: a connection by itself
  uint32_t version = kWireVersion;
  uint32_t page_size = 0;
  uint64_t ram_bytes = 0;
  std::array<std::byte, 32> token{};
  uint64_t link = 0;  // 0 from stream 0; from the others what HELLO_OK told stream 0
  uint16_t stream = 0;
  uint16_t streams = 1;
  uint32_t flags = kFlagVerify;
  bool of_disks() const { return (flags & kFlagDisks) != 0; }
  bool of_pages() const { return (flags & kFlagPages) != 0; }
};
std::array<std::byte, HelloBody::kBytes> EncodeHello(const HelloBody& hello);
HelloBody DecodeHello(std::span<const std::byte, HelloBody::kBytes> bytes);
// The field that is at the same place in every version.
uint32_t DecodeHelloVersion(std::span<const std::byte, sizeof(uint32_t)> bytes);
// The fields that need no session to be judged.
Status CheckHello(const HelloBody& hello);

struct HelloOkBody {
  static constexpr size_t kBytes = 16;
  static constexpr uint32_t kFlagPrefixAhead = 2;  // PREFIX_AHEAD is understood, wanted or not
  uint32_t version = kWireVersion;
  uint32_t flags = HelloBody::kFlagVerify;  // what both sides want of HELLO's flags, and the one above
  uint64_t link = 0;                        // names the streams that belong together
};
std::array<std::byte, HelloOkBody::kBytes> EncodeHelloOk(const HelloOkBody& ok);
HelloOkBody DecodeHelloOk(std::span<const std::byte, HelloOkBody::kBytes> bytes);

struct PageTotals {
  static constexpr size_t kBytes = 16;
  uint64_t pages = 0;
  uint64_t zero_pages = 0;
};
std::array<std::byte, PageTotals::kBytes> EncodeTotals(const PageTotals& totals);
PageTotals DecodeTotals(std::span<const std::byte, PageTotals::kBytes> bytes);

// Of COMMIT and of END_PART: what its stream carried. The digest is 0 in base
// rounds, and where the sides agreed on none.
struct PartBody {
  static constexpr size_t kBytes = 32;
  PageTotals totals;
  uint64_t digest = 0;
  uint64_t age_ns = 0;  // COMMIT: since the VM was stopped; 0 in END_PART, or if not known
};
std::array<std::byte, PartBody::kBytes> EncodePart(const PartBody& part);
PartBody DecodePart(std::span<const std::byte, PartBody::kBytes> bytes);

// Names a prefix: what PREFIX_AHEAD begins with and PREFIX_KEPT has, but that only
// the latter says how long it is.
struct PrefixName {
  static constexpr size_t kBytes = 16;
  static constexpr size_t kDigestBytes = 8;
  uint64_t digest = 0;
  uint64_t bytes = 0;
  bool operator==(const PrefixName&) const = default;
};
PrefixName NameOfPrefix(std::span<const std::byte> prefix);
std::array<std::byte, PrefixName::kBytes> EncodePrefixName(const PrefixName& name);
PrefixName DecodePrefixName(std::span<const std::byte, PrefixName::kBytes> bytes);

struct AckBody {
  static constexpr size_t kBytes = 8;
  static constexpr uint64_t kUnknown = ~uint64_t{0};
  uint64_t last_apply_us = kUnknown;
};
std::array<std::byte, AckBody::kBytes> EncodeAck(const AckBody& ack);
AckBody DecodeAck(std::span<const std::byte, AckBody::kBytes> bytes);

// Codes of ERROR frames; part of the protocol, never renumbered.
enum class WireError : uint32_t {
  kProtocol = 1,
  kChecksum = 2,
  kAuth = 3,
  kVersion = 4,
  kFenced = 5,
  kNoSpace = 6,
  kLimit = 7,
  kBusy = 8,
  kClosing = 9,
  kInternal = 10,
};

WireError WireErrorOf(ErrorCode code);

// A whole ERROR frame, header included. `text` is cut to the limit.
std::string EncodeErrorFrame(WireError code, std::string_view text);

// What the other side said with an ERROR payload, as an error of ours. Control
// characters in its text become '?': it may end in a terminal.
Error DecodeError(std::span<const std::byte> payload);

}  // namespace holdfast
