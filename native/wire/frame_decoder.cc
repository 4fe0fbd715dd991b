#include "wire/frame_decoder.h"

#include <cinttypes>

#include "wire/bytes.h"
#include "wire/disk_reference.h"
#include "wire/run_table.h"
#include "wire/text.h"

namespace holdfast {
namespace {

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, std::move(message));
}

Status CheckTotals(const char* name, const PageTotals& said, const PageTotals& counted) {
  if (said.pages != counted.pages) {
    return Refused(Text("%s frame: pages %" PRIu64 ", but %" PRIu64 " came", name, said.pages,
                        counted.pages));
  }
  if (said.zero_pages != counted.zero_pages) {
    return Refused(Text("%s frame: zero pages %" PRIu64 ", but %" PRIu64 " came", name,
                        said.zero_pages, counted.zero_pages));
  }
  return {};
}

}  // namespace

FrameDecoder::FrameDecoder(const WireLimits& limits)
    : limits_(limits),
      ram_pages_(limits.ram_bytes / limits.page_size),
      wanted_(limits.ram_bytes / limits.page_size) {}

void FrameDecoder::NewConnection(unsigned streams) {
  HF_ASSERT(streams >= 1 && streams <= kStreamsMax);
  parts_.assign(streams, {});
  work_ = Work::kNone;
  epoch_ = 0;
  committed_here_ = false;
  kept_prefix_.reset();
}

// Made when a slice is first seen, then kept: nearly every epoch has as many.
PageBitmap& FrameDecoder::SeenIn(uint32_t slice) {
  while (seen_.size() <= slice) seen_.emplace_back(ram_pages_);
  return seen_[slice];
}

Result<FrameHeader> FrameDecoder::Header(unsigned stream,
                                         std::span<const std::byte, kFrameHeaderBytes> bytes) {
  HF_ASSERT(stream < parts_.size());
  auto header = DecodeHeader(bytes, limits_.device_bytes_max);
  if (!header.ok()) return header.error();
  HF_TRY(CheckOrder(stream, header.value()));
  HF_TRY(CheckBudget(header.value()));
  Enter(stream, header.value());
  return header;
}

// A BEGIN that opens an epoch or a round for all streams.
Status FrameDecoder::CheckNew(const FrameHeader& header) const {
  if ((header.flags & kFlagBase) != 0) {
    if (header.epoch != 0) {
      return Refused(Text("BEGIN frame: epoch %" PRIu64 " in a base round, not 0", header.epoch));
    }
    // Rounds go straight to the replica: the checkpoint in it would be torn.
    if (last_committed_ != 0) {
      return Refused(Text("BEGIN frame: base round after epoch %" PRIu64, last_committed_));
    }
    return {};
  }
  if (header.epoch <= last_committed_) {
    return Refused(Text("BEGIN frame: epoch %" PRIu64 " does not follow %" PRIu64, header.epoch,
                        last_committed_));
  }
  if (round_torn_) return Refused("BEGIN frame: epoch after a base round that never ended");
  return {};
}

Status FrameDecoder::CheckBegin(unsigned stream, const FrameHeader& header) const {
  // Also when only this stream's part of it has ended: all wait for the answer.
  if (parts_[stream].state != Part::State::kIdle) {
    return Refused("BEGIN frame: an epoch or a round is open");
  }
  if (work_ == Work::kNone) return CheckNew(header);
  const bool same_kind = ((header.flags & kFlagBase) != 0) == in_round();
  if (!same_kind || header.epoch != epoch_) {
    return Refused(Text("BEGIN frame: %s %" PRIu64 " on stream %u, but %s %" PRIu64 " is open",
                        (header.flags & kFlagBase) != 0 ? "round" : "epoch", header.epoch, stream,
                        in_round() ? "round" : "epoch", epoch_));
  }
  return {};
}

Status FrameDecoder::CheckOrder(unsigned stream, const FrameHeader& header) const {
  const char* name = FrameName(header.type);
  const bool open = parts_[stream].state == Part::State::kOpen;
  const bool amending = parts_[stream].state == Part::State::kAmending;
  bool expected = false;
  switch (header.type) {
    case FrameType::kBegin: return CheckBegin(stream, header);
    case FrameType::kError: return {};  // ends the connection wherever it is
    case FrameType::kReferences:
    case FrameType::kPages:
    case FrameType::kZero:
      if (amending && header.slice != 0) {
        return Refused(Text("%s frame: slice %" PRIu32 " of pages that were asked for", name,
                            header.slice));
      }
      if (open && in_round() && header.slice != 0) {
        return Refused(Text("%s frame: slice %" PRIu32 " of a base round", name, header.slice));
      }
      if (open && header.slice < parts_[stream].slice) {
        return Refused(Text("%s frame: slice %" PRIu32 " after slice %" PRIu32, name, header.slice,
                            parts_[stream].slice));
      }
      expected = open || (amending && header.type != FrameType::kReferences);
      break;
    case FrameType::kPrefix:
    case FrameType::kPrefixKept:
      expected = open && stream == 0 && in_epoch() && !prefix_seen_;
      break;
    case FrameType::kPrefixAhead:
      expected = open && stream == 0 && in_round() && !prefix_seen_;
      break;
    case FrameType::kDevice: expected = open && stream == 0 && in_epoch(); break;
    case FrameType::kDeviceDelta:
      if (!committed_here_) {
        return Refused("DEVICE_DELTA frame: no epoch was committed on this connection");
      }
      expected = open && stream == 0 && in_epoch();
      break;
    case FrameType::kCommit:
      expected = parts_[stream].state == Part::State::kSealed || (amending && in_epoch());
      break;
    case FrameType::kEndRound:
      expected = (open || amending) && stream == 0 && in_round();
      break;
    case FrameType::kEndPart: expected = open && stream != 0; break;
    case FrameType::kAbandon: expected = open && in_epoch(); break;
    case FrameType::kHello:
    case FrameType::kHelloOk:
    case FrameType::kAck:
    case FrameType::kRoundOk:
    case FrameType::kAbandoned:
    case FrameType::kDiskState:
    case FrameType::kDiskMarks:
    case FrameType::kDiskSync:
    case FrameType::kDiskBase:
    case FrameType::kDiskLog:
    case FrameType::kDiskSynced:
    case FrameType::kDiskReady:
    case FrameType::kDiskBoundary:
    case FrameType::kDiskReceived:
    case FrameType::kWanted:
    case FrameType::kPageList:
    case FrameType::kPageLacks:
    case FrameType::kPageDemand:
    case FrameType::kPageData:
    case FrameType::kPageZero:
    case FrameType::kPagesHave: break;
  }
  if (!expected) {
    return Refused(Text("%s frame: type %u is out of order here, on stream %u", name,
                        static_cast<unsigned>(header.type), stream));
  }
  if (header.epoch != epoch_) {
    return Refused(
        Text("%s frame: epoch %" PRIu64 ", but %" PRIu64 " is open", name, header.epoch, epoch_));
  }
  return {};
}

// Page bytes that a frame makes: what it carries, or what it refers to.
uint64_t FrameDecoder::PageBytesOf(const FrameHeader& header) const {
  if (header.type == FrameType::kPages) return header.payload_bytes;
  if (header.type != FrameType::kReferences) return 0;
  return header.payload_bytes / DiskReference::kBytes * limits_.page_size;
}

Status FrameDecoder::CheckBudget(const FrameHeader& header) const {
  const bool referred = header.type == FrameType::kReferences;
  if (header.type != FrameType::kPages && !referred) return {};
  const uint32_t unit = referred ? DiskReference::kBytes : limits_.page_size;
  if (header.payload_bytes % unit != 0) {
    return Refused(Text("%s frame: payloadBytes %" PRIu64 " is not a multiple of %" PRIu32,
                        FrameName(header.type), header.payload_bytes, unit));
  }
  if (!in_epoch()) return {};
  const uint64_t bytes_max = EpochBytesSentMax(limits_);
  if (PageBytesOf(header) > bytes_max - page_bytes_) {
    return Refused(Text("%s frame: payloadBytes %" PRIu64 " on top of %" PRIu64
                        " exceeds %" PRIu64 " for one epoch",
                        FrameName(header.type), PageBytesOf(header), page_bytes_, bytes_max));
  }
  return {};
}

void FrameDecoder::Open(const FrameHeader& begin) {
  const bool base = (begin.flags & kFlagBase) != 0;
  work_ = base ? Work::kRound : Work::kEpoch;
  if (base) round_torn_ = true;
  epoch_ = begin.epoch;
  page_bytes_ = 0;
  prefix_seen_ = false;
  parts_ended_ = parts_abandoned_ = 0;
  totals_ = {};
  for (PageBitmap& seen : seen_) seen.Clear();
  wanted_.Clear();
}

void FrameDecoder::Enter(unsigned stream, const FrameHeader& header) {
  Part& part = parts_[stream];
  part.current = header;
  switch (header.type) {
    case FrameType::kBegin:
      if (work_ == Work::kNone) Open(header);
      part.state = Part::State::kOpen;
      part.slice = 0;
      part.totals = {};
      break;
    // Counted now, not when its table has come: other streams' frames arrive in between.
    case FrameType::kPages:
    case FrameType::kReferences:
      page_bytes_ += PageBytesOf(header);
      part.slice = header.slice;
      break;
    case FrameType::kZero: part.slice = header.slice; break;
    case FrameType::kPrefix:
    case FrameType::kPrefixKept:
    case FrameType::kPrefixAhead: prefix_seen_ = true; break;
    case FrameType::kDevice:
    case FrameType::kDeviceDelta: part.state = Part::State::kSealed; break;
    default: break;
  }
}

Result<std::span<const std::byte>> FrameDecoder::PrefixAhead(std::span<const std::byte> payload) {
  HF_ASSERT(payload.size() >= PrefixName::kDigestBytes);
  const auto prefix = payload.subspan(PrefixName::kDigestBytes);
  const auto said = Get<uint64_t>(payload.data());
  const PrefixName name = NameOfPrefix(prefix);
  if (said != name.digest) {
    return Error::Of(ErrorCode::kChecksum,
                     Text("PREFIX_AHEAD frame: digest 0x%016" PRIx64 ", but 0x%016" PRIx64 " came",
                          said, name.digest));
  }
  kept_prefix_ = name;
  return prefix;
}

Status FrameDecoder::PrefixKept(std::span<const std::byte, PrefixName::kBytes> payload) const {
  const PrefixName name = DecodePrefixName(payload);
  if (kept_prefix_ == name) return {};
  return Refused(Text("PREFIX_KEPT frame: digest 0x%016" PRIx64 ", %" PRIu64
                      " bytes: no such prefix was kept",
                      name.digest, name.bytes));
}

Status FrameDecoder::Table(unsigned stream, std::span<const std::byte> table) {
  Part& part = parts_[stream];
  const FrameHeader& frame = part.current;
  HF_ASSERT(frame.type == FrameType::kPages || frame.type == FrameType::kZero ||
            frame.type == FrameType::kReferences);
  HF_ASSERT(table.size() == frame.table_bytes);
  const char* name = FrameName(frame.type);
  auto pages = CheckRuns(table, ram_pages_);
  if (!pages.ok()) return Refused(Text("%s frame: %s", name, pages.error().message.c_str()));
  if (frame.type == FrameType::kPages &&
      frame.payload_bytes != pages.value() * limits_.page_size) {
    return Refused(Text("PAGES frame: payloadBytes %" PRIu64 " for %" PRIu64 " pages of %" PRIu32,
                        frame.payload_bytes, pages.value(), limits_.page_size));
  }
  if (frame.type == FrameType::kReferences &&
      frame.payload_bytes != pages.value() * DiskReference::kBytes) {
    return Refused(Text("REFERENCES frame: payloadBytes %" PRIu64 " for %" PRIu64 " pages",
                        frame.payload_bytes, pages.value()));
  }
  HF_TRY(part.state == Part::State::kAmending ? CheckAskedFor(frame, table)
                                              : CheckOnce(frame, table));
  (frame.type == FrameType::kZero ? part.totals.zero_pages : part.totals.pages) += pages.value();
  return {};
}

Status FrameDecoder::CheckAskedFor(const FrameHeader& frame, std::span<const std::byte> table) {
  WireRun run;
  for (RunCursor runs(table); runs.Next(run);) {
    if (!wanted_.Came(run)) {
      return Refused(Text("%s frame: a page of first page %" PRIu64 ", pages %" PRIu32
                          " was not asked for",
                          FrameName(frame.type), run.first_page, run.pages));
    }
  }
  return {};
}

// Streams are in no order among each other: within a slice, a page must have
// one content.
Status FrameDecoder::CheckOnce(const FrameHeader& frame, std::span<const std::byte> table) {
  PageBitmap& seen = SeenIn(frame.slice);
  WireRun run;
  for (RunCursor runs(table); runs.Next(run);) {
    if (!seen.Add(run.first_page, run.pages)) {
      return Refused(Text("%s frame: a page of first page %" PRIu64 ", pages %" PRIu32
                          " came before in this %s",
                          FrameName(frame.type), run.first_page, run.pages,
                          in_round() ? "round" : "slice"));
    }
  }
  return {};
}

Status FrameDecoder::References(unsigned stream, std::span<const std::byte> payload) const {
  HF_ASSERT(parts_[stream].current.type == FrameType::kReferences);
  return CheckReferences(payload, limits_.reference_disks, limits_.page_size);
}

Result<bool> FrameDecoder::EndPart(unsigned stream, std::span<const std::byte> payload,
                                   uint64_t digest) {
  Part& part = parts_[stream];
  const FrameType type = part.current.type;
  if (parts_abandoned_ > 0) {
    return Refused(Text("%s frame: epoch %" PRIu64 " was abandoned on another stream",
                        FrameName(type), epoch_));
  }
  PartBody said;
  if (type == FrameType::kEndRound) {
    said = {DecodeTotals(payload.first<PageTotals::kBytes>()), digest, 0};
  } else {
    HF_ASSERT(type == FrameType::kCommit || type == FrameType::kEndPart);
    said = DecodePart(payload.first<PartBody::kBytes>());
  }
  HF_TRY(CheckTotals(FrameName(type), said.totals, part.totals));
  if (said.digest != digest) {
    return Error::Of(ErrorCode::kChecksum,
                     Text("%s frame: digest 0x%016" PRIx64 " of epoch %" PRIu64
                          ", but what came has 0x%016" PRIx64,
                          FrameName(type), said.digest, epoch_, digest));
  }
  const bool amended = part.state == Part::State::kAmending;
  if (amended && wanted_.missing_pages() > 0) {
    return Refused(Text("%s frame: %" PRIu64 " of the pages that were asked for did not come",
                        FrameName(type), wanted_.missing_pages()));
  }
  part.state = Part::State::kEnded;
  totals_.pages += part.totals.pages;
  totals_.zero_pages += part.totals.zero_pages;
  if (!amended) parts_ended_++;
  if (parts_ended_ < parts_.size() || !wanted_.empty()) return false;

  if (in_round()) {
    round_torn_ = false;
  } else {
    last_committed_ = epoch_;
    committed_here_ = true;
  }
  Close();
  return true;
}

std::span<const std::byte> FrameDecoder::AskAgain() {
  HF_ASSERT(wanting());
  Part& part = parts_[0];
  part.state = Part::State::kAmending;
  part.slice = 0;
  part.totals = {};
  return wanted_.Ask();
}

Result<bool> FrameDecoder::Abandon(unsigned stream) {
  Part& part = parts_[stream];
  HF_ASSERT(part.current.type == FrameType::kAbandon);
  // What one stream takes for given up must not be committed by the others.
  if (parts_ended_ > parts_abandoned_) {
    return Refused(Text("ABANDON frame: a part of epoch %" PRIu64 " has ended otherwise", epoch_));
  }
  part.state = Part::State::kEnded;
  parts_abandoned_++;
  if (++parts_ended_ < parts_.size()) return false;
  Close();
  return true;
}

void FrameDecoder::Close() {
  for (Part& part : parts_) part.state = Part::State::kIdle;
  work_ = Work::kNone;
}

}  // namespace holdfast
