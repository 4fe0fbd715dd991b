#include "wire/frame.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "wire/bytes.h"
#include "wire/digest.h"
#include "wire/disk_frame.h"
#include "wire/disk_reference.h"
#include "wire/page_frame.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr size_t kHashedBytes = 32;
constexpr const char* kUnknown = "unknown";

// Payload sizes allowed for a type; both ends included.
struct PayloadLimits {
  uint64_t min;
  uint64_t max;
};

PayloadLimits LimitsOf(FrameType type, uint64_t device_bytes_max) {
  switch (type) {
    case FrameType::kHello: return {HelloBody::kVersion1Bytes, HelloBody::kBytes};
    case FrameType::kHelloOk: return {HelloOkBody::kBytes, HelloOkBody::kBytes};
    case FrameType::kPages: return {1, kPagesBytesMax};
    case FrameType::kPrefix:
    case FrameType::kDevice:
    case FrameType::kDeviceDelta: return {0, device_bytes_max};
    case FrameType::kPrefixAhead:
      return {PrefixName::kDigestBytes, PrefixName::kDigestBytes + device_bytes_max};
    case FrameType::kPrefixKept: return {PrefixName::kBytes, PrefixName::kBytes};
    case FrameType::kCommit:
    case FrameType::kEndPart: return {PartBody::kBytes, PartBody::kBytes};
    case FrameType::kEndRound: return {PageTotals::kBytes, PageTotals::kBytes};
    case FrameType::kAck: return {AckBody::kBytes, AckBody::kBytes};
    case FrameType::kError: return {sizeof(uint32_t), kErrorBytesMax};
    case FrameType::kDiskState: return {DiskState::kBytesMin, DiskState::kBytesMax};
    case FrameType::kDiskMarks: return {DiskMarksBody::kBytes, DiskMarksBody::kBytes};
    case FrameType::kDiskSync: return {DiskPlan::kBytesMin, DiskPlan::kBytesMax};
    case FrameType::kDiskBase:
      return {DiskBaseBody::kBytes, DiskBaseBody::kBytes + kDiskPieceBytesMax};
    case FrameType::kDiskLog:
      return {DiskLogBody::kBytes + 1, DiskLogBody::kBytes + kDiskPieceBytesMax};
    case FrameType::kDiskSynced: return {sizeof(SyncId), sizeof(SyncId)};
    case FrameType::kDiskBoundary: return {DiskBoundaryBytes(1), DiskBoundaryBytes(kDisksMax)};
    case FrameType::kDiskReceived: return {DiskLogBody::kBytes, DiskLogBody::kBytes};
    case FrameType::kReferences: return {DiskReference::kBytes, kReferencesBytesMax};
    case FrameType::kWanted: return {WantedBody::kBytes, WantedBody::kBytes};
    case FrameType::kPageList:
    case FrameType::kPageLacks: return {PageListBody::kBytes, PageListBody::kBytes};
    case FrameType::kPageDemand: return {PageDemandBody::kBytes, PageDemandBody::kBytes};
    case FrameType::kPageData:
      return {PageDataBody::kBytes + 1, PageDataBody::kBytes + kPageDataBytesMax};
    case FrameType::kPageZero: return {PageDataBody::kBytes, PageDataBody::kBytes};
    case FrameType::kPagesHave: return {PagesHaveBody::kBytes, PagesHaveBody::kBytes};
    case FrameType::kBegin:
    case FrameType::kZero:
    case FrameType::kRoundOk:
    case FrameType::kAbandon:
    case FrameType::kAbandoned:
    case FrameType::kDiskReady: return {0, 0};
  }
  return {0, 0};
}

bool HasPages(FrameType type) { return type == FrameType::kPages || type == FrameType::kZero; }

bool HasTable(FrameType type) {
  return HasPages(type) || type == FrameType::kDiskMarks || type == FrameType::kReferences ||
         type == FrameType::kWanted;
}

// One of no pages has none.
bool MayHaveTable(FrameType type) {
  return type == FrameType::kPageList || type == FrameType::kPageLacks;
}

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, std::move(message));
}

Status CheckSizes(const FrameHeader& header, uint64_t device_bytes_max) {
  const char* name = FrameName(header.type);
  if (header.table_bytes > kTableBytesMax) {
    return Refused(Text("%s frame: tableBytes %" PRIu32 " exceeds %" PRIu32, name,
                        header.table_bytes, kTableBytesMax));
  }
  if (HasTable(header.type)) {
    if (header.table_bytes == 0) return Refused(Text("%s frame: tableBytes 0", name));
  } else if (header.table_bytes != 0 && !MayHaveTable(header.type)) {
    return Refused(Text("%s frame: tableBytes %" PRIu32 ", but it has no table", name,
                        header.table_bytes));
  }
  const PayloadLimits limits = LimitsOf(header.type, device_bytes_max);
  if (header.payload_bytes < limits.min || header.payload_bytes > limits.max) {
    return Refused(Text("%s frame: payloadBytes %" PRIu64 " is outside %" PRIu64 " to %" PRIu64,
                        name, header.payload_bytes, limits.min, limits.max));
  }
  return {};
}

}  // namespace

const char* FrameName(FrameType type) {
  switch (type) {
    case FrameType::kHello: return "HELLO";
    case FrameType::kHelloOk: return "HELLO_OK";
    case FrameType::kBegin: return "BEGIN";
    case FrameType::kPages: return "PAGES";
    case FrameType::kZero: return "ZERO";
    case FrameType::kPrefix: return "PREFIX";
    case FrameType::kDevice: return "DEVICE";
    case FrameType::kCommit: return "COMMIT";
    case FrameType::kEndRound: return "END_ROUND";
    case FrameType::kAck: return "ACK";
    case FrameType::kRoundOk: return "ROUND_OK";
    case FrameType::kError: return "ERROR";
    case FrameType::kEndPart: return "END_PART";
    case FrameType::kDeviceDelta: return "DEVICE_DELTA";
    case FrameType::kAbandon: return "ABANDON";
    case FrameType::kAbandoned: return "ABANDONED";
    case FrameType::kDiskState: return "DISK_STATE";
    case FrameType::kDiskMarks: return "DISK_MARKS";
    case FrameType::kDiskSync: return "DISK_SYNC";
    case FrameType::kDiskBase: return "DISK_BASE";
    case FrameType::kDiskLog: return "DISK_LOG";
    case FrameType::kDiskSynced: return "DISK_SYNCED";
    case FrameType::kDiskReady: return "DISK_READY";
    case FrameType::kDiskBoundary: return "DISK_BOUNDARY";
    case FrameType::kDiskReceived: return "DISK_RECEIVED";
    case FrameType::kReferences: return "REFERENCES";
    case FrameType::kWanted: return "WANTED";
    case FrameType::kPrefixAhead: return "PREFIX_AHEAD";
    case FrameType::kPrefixKept: return "PREFIX_KEPT";
    case FrameType::kPageList: return "PAGE_LIST";
    case FrameType::kPageLacks: return "PAGE_LACKS";
    case FrameType::kPageDemand: return "PAGE_DEMAND";
    case FrameType::kPageData: return "PAGE_DATA";
    case FrameType::kPageZero: return "PAGE_ZERO";
    case FrameType::kPagesHave: return "PAGES_HAVE";
  }
  return kUnknown;
}

HeaderBytes EncodeHeader(const FrameHeader& header) {
  HeaderBytes bytes{};
  Put(&bytes[0], kFrameMagic);
  Put(&bytes[4], static_cast<uint16_t>(header.type));
  Put(&bytes[6], header.flags);
  Put(&bytes[8], header.epoch);
  Put(&bytes[16], header.table_bytes);
  Put(&bytes[20], header.slice);
  Put(&bytes[24], header.payload_bytes);
  Put(&bytes[32], HashBytes(std::span(bytes).first<kHashedBytes>()));
  return bytes;
}

Result<FrameHeader> DecodeHeader(std::span<const std::byte, kFrameHeaderBytes> bytes,
                                 uint64_t device_bytes_max) {
  const auto magic = Get<uint32_t>(&bytes[0]);
  if (magic != kFrameMagic) {
    return Refused(Text("frame: magic 0x%08" PRIx32 " is not 0x%08" PRIx32, magic, kFrameMagic));
  }
  const auto hash = Get<uint64_t>(&bytes[32]);
  const uint64_t expected = HashBytes(bytes.first<kHashedBytes>());
  if (hash != expected) {
    return Refused(Text("frame: headerHash 0x%016" PRIx64 " is not 0x%016" PRIx64, hash, expected));
  }
  const auto type = Get<uint16_t>(&bytes[4]);
  if (std::string_view(FrameName(static_cast<FrameType>(type))) == kUnknown) {
    return Refused(Text("frame: type %u is unknown", type));
  }
  FrameHeader header;
  header.type = static_cast<FrameType>(type);
  header.flags = Get<uint16_t>(&bytes[6]);
  header.epoch = Get<uint64_t>(&bytes[8]);
  header.table_bytes = Get<uint32_t>(&bytes[16]);
  header.slice = Get<uint32_t>(&bytes[20]);
  header.payload_bytes = Get<uint64_t>(&bytes[24]);
  const char* name = FrameName(header.type);
  const uint16_t allowed_flags = header.type == FrameType::kBegin ? kFlagBase : 0;
  if ((header.flags & ~allowed_flags) != 0) {
    return Refused(Text("%s frame: flags 0x%04x has unknown bits", name, header.flags));
  }
  const uint32_t slice_max = HasPages(header.type) ? kSlicesMax - 1 : 0;
  if (header.slice > slice_max) {
    return Refused(
        Text("%s frame: slice %" PRIu32 " exceeds %" PRIu32, name, header.slice, slice_max));
  }
  if (header.epoch > kEpochMax) {
    return Refused(Text("%s frame: epoch %" PRIu64 " exceeds %" PRIu64, name, header.epoch,
                        kEpochMax));
  }
  HF_TRY(CheckSizes(header, device_bytes_max));
  return header;
}

std::array<std::byte, HelloBody::kBytes> EncodeHello(const HelloBody& hello) {
  std::array<std::byte, HelloBody::kBytes> bytes;
  Put(&bytes[0], hello.version);
  Put(&bytes[4], hello.page_size);
  Put(&bytes[8], hello.ram_bytes);
  std::memcpy(&bytes[16], hello.token.data(), hello.token.size());
  Put(&bytes[48], hello.link);
  Put(&bytes[56], hello.stream);
  Put(&bytes[58], hello.streams);
  Put(&bytes[60], hello.flags);
  return bytes;
}

HelloBody DecodeHello(std::span<const std::byte, HelloBody::kBytes> bytes) {
  HelloBody hello;
  hello.version = Get<uint32_t>(&bytes[0]);
  hello.page_size = Get<uint32_t>(&bytes[4]);
  hello.ram_bytes = Get<uint64_t>(&bytes[8]);
  std::memcpy(hello.token.data(), &bytes[16], hello.token.size());
  hello.link = Get<uint64_t>(&bytes[48]);
  hello.stream = Get<uint16_t>(&bytes[56]);
  hello.streams = Get<uint16_t>(&bytes[58]);
  hello.flags = Get<uint32_t>(&bytes[60]);
  return hello;
}

uint32_t DecodeHelloVersion(std::span<const std::byte, sizeof(uint32_t)> bytes) {
  return Get<uint32_t>(bytes.data());
}

Status CheckHello(const HelloBody& hello) {
  if (hello.streams < 1 || hello.streams > kStreamsMax) {
    return Refused(Text("HELLO frame: streams %u is outside 1 to %u", hello.streams, kStreamsMax));
  }
  if (hello.stream >= hello.streams) {
    return Refused(Text("HELLO frame: stream %u of %u", hello.stream, hello.streams));
  }
  if (hello.of_disks() && hello.stream != 0) {
    return Refused(Text("HELLO frame: stream %u of the disks", hello.stream));
  }
  const bool first = hello.stream == 0 && !hello.of_disks();
  if (first != (hello.link == 0)) {
    return Refused(Text("HELLO frame: link %" PRIu64 " of %s %u", hello.link,
                        hello.of_disks() ? "disk stream" : "stream", hello.stream));
  }
  if (hello.of_pages() && (hello.of_disks() || hello.stream != 0)) {
    return Refused("HELLO frame: the page stream is one by itself");
  }
  constexpr uint32_t kFlags =
      HelloBody::kFlagVerify | HelloBody::kFlagDisks | HelloBody::kFlagPages;
  if ((hello.flags & ~kFlags) != 0) {
    return Refused(Text("HELLO frame: flags 0x%08" PRIx32 " has unknown bits", hello.flags));
  }
  return {};
}

std::array<std::byte, HelloOkBody::kBytes> EncodeHelloOk(const HelloOkBody& ok) {
  std::array<std::byte, HelloOkBody::kBytes> bytes;
  Put(&bytes[0], ok.version);
  Put(&bytes[4], ok.flags);
  Put(&bytes[8], ok.link);
  return bytes;
}

HelloOkBody DecodeHelloOk(std::span<const std::byte, HelloOkBody::kBytes> bytes) {
  return {Get<uint32_t>(&bytes[0]), Get<uint32_t>(&bytes[4]), Get<uint64_t>(&bytes[8])};
}

std::array<std::byte, PageTotals::kBytes> EncodeTotals(const PageTotals& totals) {
  std::array<std::byte, PageTotals::kBytes> bytes;
  Put(&bytes[0], totals.pages);
  Put(&bytes[8], totals.zero_pages);
  return bytes;
}

PageTotals DecodeTotals(std::span<const std::byte, PageTotals::kBytes> bytes) {
  return {Get<uint64_t>(&bytes[0]), Get<uint64_t>(&bytes[8])};
}

std::array<std::byte, PartBody::kBytes> EncodePart(const PartBody& part) {
  std::array<std::byte, PartBody::kBytes> bytes;
  Put(&bytes[0], part.totals.pages);
  Put(&bytes[8], part.totals.zero_pages);
  Put(&bytes[16], part.digest);
  Put(&bytes[24], part.age_ns);
  return bytes;
}

PartBody DecodePart(std::span<const std::byte, PartBody::kBytes> bytes) {
  return {{Get<uint64_t>(&bytes[0]), Get<uint64_t>(&bytes[8])},
          Get<uint64_t>(&bytes[16]),
          Get<uint64_t>(&bytes[24])};
}

PrefixName NameOfPrefix(std::span<const std::byte> prefix) {
  return {HashBytes(prefix), prefix.size()};
}

std::array<std::byte, PrefixName::kBytes> EncodePrefixName(const PrefixName& name) {
  std::array<std::byte, PrefixName::kBytes> bytes;
  Put(&bytes[0], name.digest);
  Put(&bytes[8], name.bytes);
  return bytes;
}

PrefixName DecodePrefixName(std::span<const std::byte, PrefixName::kBytes> bytes) {
  return {Get<uint64_t>(&bytes[0]), Get<uint64_t>(&bytes[8])};
}

std::array<std::byte, AckBody::kBytes> EncodeAck(const AckBody& ack) {
  std::array<std::byte, AckBody::kBytes> bytes;
  Put(&bytes[0], ack.last_apply_us);
  return bytes;
}

AckBody DecodeAck(std::span<const std::byte, AckBody::kBytes> bytes) {
  return {Get<uint64_t>(&bytes[0])};
}

WireError WireErrorOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kProtocol: return WireError::kProtocol;
    case ErrorCode::kChecksum: return WireError::kChecksum;
    case ErrorCode::kAuth: return WireError::kAuth;
    case ErrorCode::kFenced: return WireError::kFenced;
    case ErrorCode::kNoSpace: return WireError::kNoSpace;
    case ErrorCode::kLimit: return WireError::kLimit;
    case ErrorCode::kCancelled: return WireError::kClosing;
    case ErrorCode::kConnect:
    case ErrorCode::kSyscall:
    case ErrorCode::kUnsupported:
    case ErrorCode::kInject:
    case ErrorCode::kRamMapping:
    case ErrorCode::kPeerLost:
    case ErrorCode::kStateLoad:
    case ErrorCode::kDisk:
    case ErrorCode::kDiskForeign: return WireError::kInternal;
  }
  return WireError::kInternal;
}

namespace {
ErrorCode CodeOfWire(uint32_t code) {
  switch (static_cast<WireError>(code)) {
    case WireError::kProtocol:
    case WireError::kVersion: return ErrorCode::kProtocol;
    case WireError::kChecksum: return ErrorCode::kChecksum;
    case WireError::kAuth: return ErrorCode::kAuth;
    case WireError::kFenced: return ErrorCode::kFenced;
    case WireError::kNoSpace: return ErrorCode::kNoSpace;
    case WireError::kLimit: return ErrorCode::kLimit;
    case WireError::kBusy: return ErrorCode::kConnect;
    case WireError::kClosing:
    case WireError::kInternal: return ErrorCode::kPeerLost;
  }
  return ErrorCode::kPeerLost;  // a code of a newer peer: its text says more
}
}  // namespace

std::string EncodeErrorFrame(WireError code, std::string_view text) {
  text = text.substr(0, kErrorBytesMax - sizeof(uint32_t));
  FrameHeader header;
  header.type = FrameType::kError;
  header.payload_bytes = sizeof(uint32_t) + text.size();
  const HeaderBytes head = EncodeHeader(header);
  std::string frame(reinterpret_cast<const char*>(head.data()), head.size());
  const auto number = static_cast<uint32_t>(code);
  frame.append(reinterpret_cast<const char*>(&number), sizeof number);
  frame.append(text);
  return frame;
}

Error DecodeError(std::span<const std::byte> payload) {
  HF_ASSERT(payload.size() >= sizeof(uint32_t));
  const auto code = Get<uint32_t>(payload.data());
  const auto bytes = payload.subspan(sizeof(uint32_t));
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::replace_if(
      text.begin(), text.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return Error::Of(CodeOfWire(code), Text("peer refused (error %" PRIu32 "): %s", code,
                                          text.empty() ? "no reason given" : text.c_str()));
}

}  // namespace holdfast
