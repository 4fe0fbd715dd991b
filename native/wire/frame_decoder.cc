#include "wire/frame_decoder.h"

#include <cinttypes>

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
    : limits_(limits), ram_pages_(limits.ram_bytes / limits.page_size), seen_(ram_pages_) {}

void FrameDecoder::NewConnection() {
  phase_ = Phase::kBetween;
  epoch_ = 0;
  seen_.Clear();
}

Result<FrameHeader> FrameDecoder::Header(std::span<const std::byte, kFrameHeaderBytes> bytes) {
  auto header = DecodeHeader(bytes, limits_.device_bytes_max);
  if (!header.ok()) return header.error();
  HF_TRY(CheckOrder(header.value()));
  HF_TRY(CheckBudget(header.value()));
  Enter(header.value());
  return header;
}

Status FrameDecoder::CheckBegin(const FrameHeader& header) const {
  if (phase_ != Phase::kBetween) return Refused("BEGIN frame: an epoch or a round is open");
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

Status FrameDecoder::CheckOrder(const FrameHeader& header) const {
  const char* name = FrameName(header.type);
  bool expected = false;
  switch (header.type) {
    case FrameType::kBegin: return CheckBegin(header);
    case FrameType::kError: return {};  // ends the connection wherever it is
    case FrameType::kPages:
    case FrameType::kZero:
      expected = phase_ == Phase::kRound || phase_ == Phase::kEpoch;
      break;
    case FrameType::kPrefix: expected = phase_ == Phase::kEpoch && !prefix_seen_; break;
    case FrameType::kDevice: expected = phase_ == Phase::kEpoch; break;
    case FrameType::kCommit: expected = phase_ == Phase::kSealed; break;
    case FrameType::kEndRound: expected = phase_ == Phase::kRound; break;
    case FrameType::kHello:
    case FrameType::kHelloOk:
    case FrameType::kAck:
    case FrameType::kRoundOk: break;
  }
  if (!expected) {
    return Refused(Text("%s frame: type %u is out of order here", name,
                        static_cast<unsigned>(header.type)));
  }
  if (header.epoch != epoch_) {
    return Refused(
        Text("%s frame: epoch %" PRIu64 ", but %" PRIu64 " is open", name, header.epoch, epoch_));
  }
  return {};
}

Status FrameDecoder::CheckBudget(const FrameHeader& header) const {
  if (header.type != FrameType::kPages) return {};
  if (header.payload_bytes % limits_.page_size != 0) {
    return Refused(Text("PAGES frame: payloadBytes %" PRIu64 " is not a multiple of %" PRIu32,
                        header.payload_bytes, limits_.page_size));
  }
  if (phase_ != Phase::kEpoch) return {};
  const uint64_t have = totals_.pages * limits_.page_size;
  if (header.payload_bytes > limits_.epoch_bytes_max - have) {
    return Refused(Text("PAGES frame: payloadBytes %" PRIu64 " on top of %" PRIu64
                        " exceeds %" PRIu64 " for one epoch",
                        header.payload_bytes, have, limits_.epoch_bytes_max));
  }
  return {};
}

void FrameDecoder::Enter(const FrameHeader& header) {
  current_ = header;
  if (header.type == FrameType::kBegin) {
    const bool base = (header.flags & kFlagBase) != 0;
    phase_ = base ? Phase::kRound : Phase::kEpoch;
    if (base) round_torn_ = true;
    epoch_ = header.epoch;
    totals_ = {};
    prefix_seen_ = false;
    seen_.Clear();
  } else if (header.type == FrameType::kPrefix) {
    prefix_seen_ = true;
  } else if (header.type == FrameType::kDevice) {
    phase_ = Phase::kSealed;
  }
}

Status FrameDecoder::Table(std::span<const std::byte> bytes) {
  HF_ASSERT(current_.type == FrameType::kPages || current_.type == FrameType::kZero);
  HF_ASSERT(bytes.size() == current_.table_bytes);
  const char* name = FrameName(current_.type);
  const RunTable table(bytes);
  auto pages = CheckRuns(table, ram_pages_);
  if (!pages.ok()) return Refused(Text("%s frame: %s", name, pages.error().message.c_str()));
  if (current_.type == FrameType::kPages &&
      current_.payload_bytes != pages.value() * limits_.page_size) {
    return Refused(Text("PAGES frame: payloadBytes %" PRIu64 " for %" PRIu64 " pages of %" PRIu32,
                        current_.payload_bytes, pages.value(), limits_.page_size));
  }
  // Applied in the background in any order of runs: a page must have one content.
  if (phase_ == Phase::kEpoch) {
    for (size_t i = 0; i < table.size(); i++) {
      const WireRun run = table[i];
      if (!seen_.Add(run.first_page, run.pages)) {
        return Refused(Text("%s frame: run %zu: a page of first page %" PRIu64 ", pages %" PRIu32
                            " came before in this epoch",
                            name, i, run.first_page, run.pages));
      }
    }
  }
  (current_.type == FrameType::kPages ? totals_.pages : totals_.zero_pages) += pages.value();
  return {};
}

Result<PageTotals> FrameDecoder::EndRound(std::span<const std::byte, PageTotals::kBytes> payload) {
  HF_ASSERT(phase_ == Phase::kRound && current_.type == FrameType::kEndRound);
  HF_TRY(CheckTotals("END_ROUND", DecodeTotals(payload), totals_));
  phase_ = Phase::kBetween;
  round_torn_ = false;
  return totals_;
}

Result<PageTotals> FrameDecoder::Commit(std::span<const std::byte, CommitBody::kBytes> payload,
                                        uint64_t digest) {
  HF_ASSERT(phase_ == Phase::kSealed && current_.type == FrameType::kCommit);
  const CommitBody said = DecodeCommit(payload);
  HF_TRY(CheckTotals("COMMIT", said.totals, totals_));
  if (said.digest != digest) {
    return Error::Of(ErrorCode::kChecksum,
                     Text("COMMIT frame: digest 0x%016" PRIx64 " of epoch %" PRIu64
                          ", but what came has 0x%016" PRIx64,
                          said.digest, epoch_, digest));
  }
  phase_ = Phase::kBetween;
  last_committed_ = epoch_;
  return totals_;
}

}  // namespace holdfast
