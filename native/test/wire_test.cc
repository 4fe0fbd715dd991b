// Frames, tables and the order of the protocol, without a socket.

#include <functional>

#include "send/zero_page.h"
#include "test/lab.h"
#include "wire/digest.h"
#include "wire/digest_functions.h"
#include "wire/frame_decoder.h"
#include "wire/page_bitmap.h"
#include "wire/run_table.h"
#include "wire/state_delta.h"

namespace holdfast::test {
namespace {

constexpr uint32_t kPage = 4096;
constexpr uint64_t kRamPages = 64;

WireLimits Limits() { return {kPage, kRamPages * kPage, kRamPages * kPage, 1000}; }

Bytes TableOf(const std::vector<WireRun>& runs) {
  RunTableWriter writer;
  for (const WireRun& run : runs) writer.Add(run);
  return {writer.bytes().begin(), writer.bytes().end()};
}

Status ShowHeader(FrameDecoder& decoder, const FrameHeader& header, unsigned stream = 0) {
  auto decoded = decoder.Header(stream, EncodeHeader(header));
  if (!decoded.ok()) return decoded.error();
  return {};
}

Status ShowRuns(FrameDecoder& decoder, FrameType type, uint64_t epoch,
                const std::vector<WireRun>& runs, uint64_t payload_bytes, unsigned stream = 0,
                uint32_t slice = 0) {
  const Bytes table = TableOf(runs);
  HF_TRY(ShowHeader(decoder,
                    {.type = type,
                     .epoch = epoch,
                     .table_bytes = static_cast<uint32_t>(table.size()),
                     .slice = slice,
                     .payload_bytes = payload_bytes},
                    stream));
  return decoder.Table(stream, table);
}

Status Begin(FrameDecoder& decoder, uint64_t epoch, uint16_t flags = 0, unsigned stream = 0) {
  return ShowHeader(decoder, {.type = FrameType::kBegin, .flags = flags, .epoch = epoch}, stream);
}

FrameDecoder Connected(const WireLimits& limits, unsigned streams = 1) {
  FrameDecoder decoder(limits);
  decoder.NewConnection(streams);
  return decoder;
}

// END_PART of an epoch or a round; `whole`: it is the last part.
Status EndPart(FrameDecoder& decoder, unsigned stream, uint64_t epoch, PageTotals totals,
               bool whole, uint64_t digest = 5, uint64_t computed = 5) {
  HF_TRY(ShowHeader(
      decoder,
      {.type = FrameType::kEndPart, .epoch = epoch, .payload_bytes = PartBody::kBytes}, stream));
  auto ended = decoder.EndPart(stream, EncodePart({totals, digest}), computed);
  if (!ended.ok()) return ended.error();
  CHECK(ended.value() == whole);
  return {};
}

Status Device(FrameDecoder& decoder, uint64_t epoch) {
  return ShowHeader(decoder, {.type = FrameType::kDevice, .epoch = epoch, .payload_bytes = 10});
}

Status Commit(FrameDecoder& decoder, uint64_t epoch, PageTotals totals, uint64_t digest = 5,
              uint64_t computed = 5, bool whole = true) {
  HF_TRY(ShowHeader(decoder, {.type = FrameType::kCommit,
                              .epoch = epoch,
                              .payload_bytes = PartBody::kBytes}));
  auto committed = decoder.EndPart(0, EncodePart({totals, digest}), computed);
  if (!committed.ok()) return committed.error();
  CHECK(committed.value() == whole);
  return {};
}

Status EndRound(FrameDecoder& decoder, PageTotals totals, bool whole = true) {
  HF_TRY(ShowHeader(decoder,
                    {.type = FrameType::kEndRound, .payload_bytes = PageTotals::kBytes}));
  auto ended = decoder.EndPart(0, EncodeTotals(totals), 0);
  if (!ended.ok()) return ended.error();
  CHECK(ended.value() == whole);
  return {};
}

#define REFUSED(status, text) CHECK_ERROR(status, ErrorCode::kProtocol, text)

TEST("headers round-trip, and every changed byte is noticed") {
  Random random(1);
  for (int i = 0; i < 200; i++) {
    const FrameHeader header{.type = FrameType::kPages,
                             .epoch = random() % kEpochMax,
                             .table_bytes = static_cast<uint32_t>(random() % 1000 + 1),
                             .slice = static_cast<uint32_t>(random() % kSlicesMax),
                             .payload_bytes = random() % kPagesBytesMax + 1};
    HeaderBytes bytes = EncodeHeader(header);
    auto decoded = DecodeHeader(bytes, 0);
    CHECK_OK(decoded);
    CHECK_EQ(decoded.value().epoch, header.epoch);
    CHECK_EQ(decoded.value().table_bytes, header.table_bytes);
    CHECK_EQ(decoded.value().slice, header.slice);
    CHECK_EQ(decoded.value().payload_bytes, header.payload_bytes);
    CHECK(decoded.value().type == header.type);
    bytes[random() % bytes.size()] ^= static_cast<std::byte>(1 + random() % 255);
    CHECK(!DecodeHeader(bytes, 0).ok());
  }
}

TEST("bodies round-trip") {
  const HelloBody hello{9, 4096, uint64_t{1} << 40, Token(9), uint64_t{1} << 50, 3, 7, 1};
  const HelloBody back = DecodeHello(EncodeHello(hello));
  CHECK(back.version == 9 && back.page_size == 4096 && back.ram_bytes == hello.ram_bytes);
  CHECK(back.token == hello.token && back.link == hello.link && back.flags == 1);
  CHECK(back.stream == 3 && back.streams == 7);
  const HelloOkBody ok = DecodeHelloOk(EncodeHelloOk({2, 1, uint64_t{1} << 50}));
  CHECK(ok.version == 2 && ok.flags == 1 && ok.link == uint64_t{1} << 50);
  const PartBody part = DecodePart(EncodePart({{3, 4}, 5, 6}));
  CHECK(part.totals.pages == 3 && part.totals.zero_pages == 4 && part.digest == 5 &&
        part.age_ns == 6);
  CHECK_EQ(DecodeAck(EncodeAck({77})).last_apply_us, uint64_t{77});
  CHECK((DecodePrefixName(EncodePrefixName({8, 9})) == PrefixName{8, 9}));
  const std::string frame = EncodeErrorFrame(WireError::kChecksum, "a\nb" + std::string(5000, 'x'));
  CHECK_EQ(frame.size(), kFrameHeaderBytes + kErrorBytesMax);
  const auto payload = std::as_bytes(std::span(frame)).subspan(kFrameHeaderBytes);
  const Error error = DecodeError(payload);
  CHECK(error.code == ErrorCode::kChecksum);
  CHECK(error.message.find("a?bxxx") != std::string::npos);
}

TEST("headers outside the limits are refused, by field") {
  const auto refuse = [](FrameHeader header, const char* text) {
    REFUSED(DecodeHeader(EncodeHeader(header), 1000), text);
  };
  refuse({.type = static_cast<FrameType>(0)}, "type 0");
  refuse({.type = static_cast<FrameType>(30)}, "type 30");
  refuse({.type = FrameType::kPages, .flags = 1, .table_bytes = 12, .payload_bytes = 1}, "flags");
  refuse({.type = FrameType::kBegin, .flags = 2}, "flags 0x0002");
  refuse({.type = FrameType::kBegin, .epoch = kEpochMax + 1}, "epoch");
  refuse({.type = FrameType::kPages, .table_bytes = kTableBytesMax + 12, .payload_bytes = 1},
         "tableBytes");
  refuse({.type = FrameType::kPages, .payload_bytes = 1}, "tableBytes 0");
  refuse({.type = FrameType::kZero}, "tableBytes 0");
  refuse({.type = FrameType::kDevice, .table_bytes = 12}, "no table");
  refuse({.type = FrameType::kPages, .table_bytes = 12, .payload_bytes = kPagesBytesMax + 1},
         "payloadBytes");
  refuse({.type = FrameType::kZero, .table_bytes = 12, .payload_bytes = 1}, "payloadBytes 1");
  refuse({.type = FrameType::kDevice, .payload_bytes = 1001}, "payloadBytes 1001");
  refuse({.type = FrameType::kPrefix, .payload_bytes = ~uint64_t{0}}, "payloadBytes");
  refuse({.type = FrameType::kCommit, .payload_bytes = 23}, "payloadBytes 23");
  refuse({.type = FrameType::kEndPart, .payload_bytes = 25}, "payloadBytes 25");
  refuse({.type = FrameType::kHello, .payload_bytes = 65}, "payloadBytes 65");
  refuse({.type = FrameType::kError, .payload_bytes = 1025}, "payloadBytes 1025");
  refuse({.type = FrameType::kDeviceDelta, .payload_bytes = 1001}, "payloadBytes 1001");
  refuse({.type = FrameType::kPrefixAhead, .payload_bytes = 7}, "payloadBytes 7");
  refuse({.type = FrameType::kPrefixAhead, .payload_bytes = 1009}, "payloadBytes 1009");
  refuse({.type = FrameType::kPrefixKept, .payload_bytes = 15}, "payloadBytes 15");
  refuse({.type = FrameType::kAbandon, .payload_bytes = 1}, "payloadBytes 1");
  refuse({.type = FrameType::kBegin, .slice = 1}, "slice 1 exceeds 0");
  refuse({.type = FrameType::kZero, .table_bytes = 12, .slice = kSlicesMax},
         "slice 64 exceeds 63");
}

Bytes TableBytes(std::initializer_list<int> values) {
  Bytes bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

TEST("run tables: a few bytes per run, and one encoding for each set of pages") {
  const auto bytes = [](const std::vector<WireRun>& runs) { return TableOf(runs); };
  CHECK(bytes({{0, 1}}) == TableBytes({0}));
  CHECK(bytes({{5, 1}, {7, 1}, {9, 2}}) == TableBytes({10, 0, 1, 0}));
  CHECK(bytes({{64, 1}, {200, 300}}) == TableBytes({0x80, 1, 0x8d, 2, 0xaa, 2}));
  Random random(8);
  for (int round = 0; round < 300; round++) {
    const uint64_t ram_pages = uint64_t{1} << (6 + random() % 46);
    std::vector<WireRun> runs;
    uint64_t total = 0;
    for (uint64_t page = random() % ram_pages; page < ram_pages && runs.size() < 100;) {
      const uint64_t longest = std::min<uint64_t>(ram_pages - page, uint64_t{1} << (random() % 32));
      runs.push_back({page, static_cast<uint32_t>(1 + random() % longest)});
      total += runs.back().pages;
      page += runs.back().pages + 1 + random() % (random() % 4 == 0 ? ram_pages / 50 + 1 : 8);
    }
    const Bytes table = TableOf(runs);
    CHECK(table.size() <= runs.size() * kRunBytesMax);
    auto pages = CheckRuns(table, ram_pages);
    CHECK_OK(pages);
    CHECK_EQ(pages.value(), total);
    RunCursor cursor(table);
    WireRun run;
    for (const WireRun& expected : runs) {
      CHECK(cursor.Next(run));
      CHECK(run.first_page == expected.first_page && run.pages == expected.pages);
    }
    CHECK(!cursor.Next(run));
  }
}

TEST("run tables: what has another form, or does not lie in RAM, is refused") {
  const auto check = [](std::initializer_list<int> bytes) {
    return CheckRuns(TableBytes(bytes), kRamPages);
  };
  CHECK_OK(check({126}));
  REFUSED(check({0x80, 1}), "first page 64");
  REFUSED(check({127, 0}), "pages 2: RAM has 64");
  REFUSED(check({1, 63}), "pages 65: RAM has 64");
  REFUSED(check({124, 0}), "run 1: first page 64");
  REFUSED(check({0x80}), "ends within a number");
  REFUSED(check({1}), "ends within a number");
  REFUSED(check({2, 0x80, 0x00}), "run 1: the table has a number that is longer than need be");
  REFUSED(check({0x80, 0x80, 0x00}), "longer than need be");
  REFUSED(check({0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}), "more than 8 bytes");
  REFUSED(check({0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                 0xff, 0x7f}),
          "RAM has 64");
}

TEST("the order of the protocol") {
  FrameDecoder decoder = Connected(Limits());
  REFUSED(ShowRuns(decoder, FrameType::kPages, 0, {{0, 1}}, kPage), "PAGES");
  REFUSED(Device(decoder, 1), "DEVICE");
  REFUSED(ShowHeader(decoder, {.type = FrameType::kAck, .payload_bytes = 8}), "ACK");
  REFUSED(Begin(decoder, 0), "epoch 0");
  CHECK_OK(Begin(decoder, 0, kFlagBase));
  REFUSED(Begin(decoder, 1), "is open");
  REFUSED(Device(decoder, 0), "DEVICE");
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 0, {{0, 1}, {5, 2}}, 3 * kPage));
  REFUSED(ShowRuns(decoder, FrameType::kZero, 0, {{6, 2}}, 0), "came before in this round");
  CHECK_OK(ShowRuns(decoder, FrameType::kZero, 0, {{8, 2}}, 0));
  REFUSED(EndRound(decoder, {2, 2}), "pages 2");
  CHECK_OK(EndRound(decoder, {3, 2}));

  CHECK_OK(Begin(decoder, 3));
  REFUSED(ShowRuns(decoder, FrameType::kPages, 4, {{0, 1}}, kPage), "epoch 4");
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 3, {{9, 1}}, kPage));
  REFUSED(ShowRuns(decoder, FrameType::kPages, 3, {{10, 1}}, 2 * kPage), "payloadBytes");
  REFUSED(ShowRuns(decoder, FrameType::kPages, 3, {{10, 1}}, kPage + 1), "multiple");
  const FrameHeader prefix{.type = FrameType::kPrefix, .epoch = 3, .payload_bytes = 8};
  CHECK_OK(ShowHeader(decoder, prefix));
  REFUSED(ShowHeader(decoder, prefix), "PREFIX");
  REFUSED(Commit(decoder, 3, {1, 0}), "COMMIT");
  CHECK_OK(Device(decoder, 3));
  REFUSED(Device(decoder, 3), "DEVICE");
  REFUSED(ShowRuns(decoder, FrameType::kZero, 3, {{11, 1}}, 0), "ZERO");
  REFUSED(Commit(decoder, 3, {2, 0}), "pages 2");
  CHECK_ERROR(Commit(decoder, 3, {1, 0}, 5, 6), ErrorCode::kChecksum, "digest");
  CHECK_OK(Commit(decoder, 3, {1, 0}));

  REFUSED(Begin(decoder, 0, kFlagBase), "after epoch 3");
  REFUSED(Begin(decoder, 3), "does not follow 3");
  REFUSED(Begin(decoder, 2), "does not follow 3");
  decoder.NewConnection(1);
  REFUSED(Begin(decoder, 0, kFlagBase), "after epoch 3");
  CHECK_OK(Begin(decoder, 7));
}

TEST("a prefix ahead: once in a round, on stream 0, and an epoch has it by its name") {
  FrameDecoder decoder = Connected(Limits(), 2);
  Random random(3);
  const Bytes prefix = RandomBytes(random, 100);
  const PrefixName name = NameOfPrefix(prefix);
  Bytes payload;
  const auto ahead = [&](uint64_t digest) {
    const auto said = EncodePrefixName({digest, 0});
    payload.assign(said.begin(), said.begin() + PrefixName::kDigestBytes);
    payload.insert(payload.end(), prefix.begin(), prefix.end());
    return decoder.PrefixAhead(payload);
  };
  const FrameHeader in_round{.type = FrameType::kPrefixAhead, .payload_bytes = 108};
  const FrameHeader in_epoch{.type = FrameType::kPrefixKept, .epoch = 1, .payload_bytes = 16};
  REFUSED(ShowHeader(decoder, in_round), "PREFIX_AHEAD");
  for (int round = 0; round < 2; round++) {
    CHECK_OK(Begin(decoder, 0, kFlagBase, 0));
    CHECK_OK(Begin(decoder, 0, kFlagBase, 1));
    REFUSED(ShowHeader(decoder, in_round, 1), "on stream 1");
    REFUSED(ShowHeader(decoder, {.type = FrameType::kPrefixKept, .payload_bytes = 16}), "PREFIX_KEPT");
    REFUSED(ShowHeader(decoder, {.type = FrameType::kPrefix, .payload_bytes = 16}), "PREFIX");
    CHECK_OK(ShowHeader(decoder, in_round));
    CHECK_ERROR(ahead(name.digest + 1), ErrorCode::kChecksum, "PREFIX_AHEAD frame: digest");
    REFUSED(decoder.PrefixKept(EncodePrefixName(name)), "no such prefix");
    if (round == 0) decoder.NewConnection(2);
  }
  auto kept = ahead(name.digest);
  CHECK_OK(kept);
  CHECK(std::ranges::equal(kept.value(), prefix));
  REFUSED(ShowHeader(decoder, in_round), "PREFIX_AHEAD");
  CHECK_OK(EndRound(decoder, {0, 0}, false));
  CHECK_OK(EndPart(decoder, 1, 0, {0, 0}, true, 0, 0));

  CHECK_OK(Begin(decoder, 1, 0, 0));
  REFUSED(ShowHeader(decoder, {.type = FrameType::kPrefixAhead, .epoch = 1, .payload_bytes = 108}),
          "PREFIX_AHEAD");
  CHECK_OK(ShowHeader(decoder, in_epoch));
  REFUSED(decoder.PrefixKept(EncodePrefixName({name.digest, 99})), "99 bytes: no such prefix");
  REFUSED(decoder.PrefixKept(EncodePrefixName({name.digest + 1, 100})), "no such prefix");
  CHECK_OK(decoder.PrefixKept(EncodePrefixName(name)));
  REFUSED(ShowHeader(decoder, in_epoch), "PREFIX_KEPT");
  REFUSED(ShowHeader(decoder, {.type = FrameType::kPrefix, .epoch = 1, .payload_bytes = 8}), "PREFIX");
  // Another connection knows nothing of it.
  decoder.NewConnection(2);
  REFUSED(decoder.PrefixKept(EncodePrefixName(name)), "no such prefix");
}

TEST("a page comes once per slice, and an epoch is bounded by twice what counts") {
  FrameDecoder decoder = Connected({kPage, kRamPages * kPage, 4 * kPage, 1000});
  CHECK_OK(Begin(decoder, 1));
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 1, {{4, 2}}, 2 * kPage));
  REFUSED(ShowRuns(decoder, FrameType::kZero, 1, {{5, 1}}, 0), "came before");
  REFUSED(ShowRuns(decoder, FrameType::kPages, 1, {{8, 7}}, 7 * kPage), "exceeds 32768");
  CHECK_OK(ShowRuns(decoder, FrameType::kZero, 1, {{20, 40}}, 0));
  decoder.NewConnection(1);
  CHECK_OK(Begin(decoder, 1));
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 1, {{4, 2}}, 2 * kPage));
}

TEST("an epoch over three streams is whole when all parts have ended, in whatever order") {
  FrameDecoder decoder = Connected(Limits(), 3);
  CHECK_OK(Begin(decoder, 0, kFlagBase, 1));
  REFUSED(Begin(decoder, 4, 0, 2), "round 0 is open");
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 0, {{0, 2}}, 2 * kPage, 1));
  REFUSED(ShowRuns(decoder, FrameType::kPages, 0, {{3, 1}}, kPage, 0), "PAGES");
  CHECK_OK(Begin(decoder, 0, kFlagBase, 0));
  REFUSED(ShowRuns(decoder, FrameType::kPages, 0, {{1, 1}}, kPage, 0), "came before");
  CHECK_OK(EndRound(decoder, {0, 0}, false));
  CHECK_OK(EndPart(decoder, 1, 0, {2, 0}, false, 0, 0));
  REFUSED(Begin(decoder, 0, kFlagBase, 1), "is open");
  CHECK_OK(Begin(decoder, 0, kFlagBase, 2));
  CHECK_OK(EndPart(decoder, 2, 0, {0, 0}, true, 0, 0));
  CHECK_EQ(decoder.totals().pages, uint64_t{2});

  CHECK_OK(Begin(decoder, 4, 0, 2));
  REFUSED(Begin(decoder, 5, 0, 1), "epoch 4 is open");
  REFUSED(Begin(decoder, 0, kFlagBase, 1), "epoch 4 is open");
  CHECK_OK(Begin(decoder, 4, 0, 1));
  CHECK_OK(Begin(decoder, 4, 0, 0));
  for (const FrameType type : {FrameType::kPrefix, FrameType::kDevice, FrameType::kCommit,
                               FrameType::kEndRound}) {
    const uint64_t bytes = type == FrameType::kCommit ? PartBody::kBytes : PageTotals::kBytes;
    REFUSED(ShowHeader(decoder, {.type = type, .epoch = 4, .payload_bytes = bytes}, 1),
            "on stream 1");
  }
  REFUSED(EndPart(decoder, 0, 4, {0, 0}, false), "on stream 0");
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 4, {{7, 1}}, kPage, 1));
  REFUSED(ShowRuns(decoder, FrameType::kZero, 4, {{6, 2}}, 0, 2), "came before");
  CHECK_OK(ShowRuns(decoder, FrameType::kZero, 4, {{8, 2}}, 0, 2));
  CHECK_OK(Device(decoder, 4));
  CHECK_OK(Commit(decoder, 4, {0, 0}, 5, 5, false));
  REFUSED(EndPart(decoder, 1, 4, {2, 0}, false), "pages 2");
  CHECK_ERROR(EndPart(decoder, 1, 4, {1, 0}, false, 5, 6), ErrorCode::kChecksum, "END_PART");
  CHECK_OK(EndPart(decoder, 1, 4, {1, 0}, false));
  CHECK_OK(EndPart(decoder, 2, 4, {0, 2}, true));
  CHECK_EQ(decoder.totals().pages, uint64_t{1});
  CHECK_EQ(decoder.totals().zero_pages, uint64_t{2});
  CHECK_EQ(decoder.epoch(), uint64_t{4});
  REFUSED(Begin(decoder, 4, 0, 1), "does not follow 4");
}

TEST("what an epoch may hold is bounded over all its streams") {
  FrameDecoder decoder = Connected({kPage, kRamPages * kPage, 4 * kPage, 1000}, 2);
  CHECK_OK(Begin(decoder, 1, 0, 0));
  CHECK_OK(Begin(decoder, 1, 0, 1));
  const auto pages = [](uint64_t count) {
    return FrameHeader{.type = FrameType::kPages,
                       .epoch = 1,
                       .table_bytes = 1,
                       .payload_bytes = count * kPage};
  };
  // Both headers before either table.
  CHECK_OK(ShowHeader(decoder, pages(5), 0));
  REFUSED(ShowHeader(decoder, pages(4), 1), "exceeds 32768");
  CHECK_OK(ShowHeader(decoder, pages(3), 1));
}

TEST("slices: a page may come in each of them, and on a stream they ascend") {
  FrameDecoder decoder = Connected(Limits(), 2);
  CHECK_OK(Begin(decoder, 0, kFlagBase, 0));
  CHECK_OK(Begin(decoder, 0, kFlagBase, 1));
  REFUSED(ShowRuns(decoder, FrameType::kPages, 0, {{4, 2}}, 2 * kPage, 0, 1), "base round");
  CHECK_OK(EndRound(decoder, {0, 0}, false));
  CHECK_OK(EndPart(decoder, 1, 0, {0, 0}, true, 0, 0));
  for (const uint64_t epoch : {1, 2}) {
    CHECK_OK(Begin(decoder, epoch, 0, 0));
    CHECK_OK(Begin(decoder, epoch, 0, 1));
    // The other stream is ahead.
    CHECK_OK(ShowRuns(decoder, FrameType::kZero, epoch, {{4, 2}}, 0, 1, 5));
    CHECK_OK(ShowRuns(decoder, FrameType::kPages, epoch, {{4, 2}}, 2 * kPage, 0, 0));
    REFUSED(ShowRuns(decoder, FrameType::kPages, epoch, {{5, 2}}, 2 * kPage, 1, 0),
            "slice 0 after slice 5");
    REFUSED(ShowRuns(decoder, FrameType::kZero, epoch, {{5, 2}}, 0, 0, 5), "came before");
    CHECK_OK(ShowRuns(decoder, FrameType::kPages, epoch, {{4, 1}}, kPage, 0, kSlicesMax - 1));
    CHECK_OK(Device(decoder, epoch));
    CHECK_OK(Commit(decoder, epoch, {3, 0}, 5, 5, false));
    CHECK_OK(EndPart(decoder, 1, epoch, {0, 2}, true));
  }
}

TEST("an epoch is given up by all streams or by none, and may begin again") {
  FrameDecoder decoder = Connected(Limits(), 3);
  const auto abandon = [&decoder](unsigned stream) -> Result<bool> {
    HF_TRY(ShowHeader(decoder, {.type = FrameType::kAbandon, .epoch = decoder.epoch()}, stream));
    return decoder.Abandon(stream);
  };
  const auto begin = [&decoder](uint64_t epoch) {
    for (unsigned stream = 0; stream < 3; stream++) CHECK_OK(Begin(decoder, epoch, 0, stream));
  };
  REFUSED(abandon(0), "out of order");
  begin(4);
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 4, {{4, 2}}, 2 * kPage, 2));
  for (const unsigned stream : {1u, 0u, 2u}) {
    REFUSED(Begin(decoder, 4, 0, stream), "is open");
    auto given_up = abandon(stream);
    CHECK_OK(given_up);
    CHECK(given_up.value() == (stream == 2));
  }
  begin(3);
  CHECK_OK(ShowRuns(decoder, FrameType::kPages, 3, {{4, 2}}, 2 * kPage, 0));
  CHECK_OK(EndPart(decoder, 1, 3, {0, 0}, false));
  REFUSED(abandon(2), "has ended otherwise");
  decoder.NewConnection(3);
  begin(3);
  CHECK_OK(abandon(2));
  REFUSED(EndPart(decoder, 1, 3, {0, 0}, false), "abandoned on another stream");
  CHECK_OK(Device(decoder, 3));
  REFUSED(abandon(0), "out of order");
  decoder.NewConnection(3);
  CHECK_OK(Begin(decoder, 0, kFlagBase, 0));
  REFUSED(abandon(0), "out of order");
}

TEST("a delta needs a state that was committed on this connection") {
  FrameDecoder decoder = Connected(Limits());
  const auto delta = [&decoder](uint64_t epoch) {
    return ShowHeader(decoder,
                      {.type = FrameType::kDeviceDelta, .epoch = epoch, .payload_bytes = 20});
  };
  CHECK_OK(Begin(decoder, 1));
  REFUSED(delta(1), "no epoch was committed");
  CHECK_OK(Device(decoder, 1));
  CHECK_OK(Commit(decoder, 1, {0, 0}));
  CHECK_OK(Begin(decoder, 2));
  CHECK_OK(delta(2));
  REFUSED(delta(2), "out of order");
  CHECK_OK(Commit(decoder, 2, {0, 0}));
  decoder.NewConnection(1);
  CHECK_OK(Begin(decoder, 3));
  REFUSED(delta(3), "no epoch was committed");
}

// As QEMU's states do: most stays, a few words change, some grow or shrink.
Bytes NextState(Random& random, const Bytes& state) {
  Bytes next = state;
  for (uint64_t changes = random() % 12; changes > 0 && !next.empty(); changes--) {
    const size_t at = random() % next.size();
    const size_t end = std::min(next.size(), at + 1 + random() % 20);
    for (size_t i = at; i < end; i++) next[i] = static_cast<std::byte>(random());
  }
  if (random() % 4 == 0) next.resize(random() % (next.size() + 300));
  return next;
}

TEST("state deltas make the state again, and are smaller") {
  Random random(11);
  Bytes base = RandomBytes(random, 20'000);
  uint64_t state_bytes = 0;
  uint64_t sent_bytes = 0;
  for (int round = 0; round < 2000; round++) {
    if (round % 100 == 0) base = RandomBytes(random, random() % 40'000);
    const Bytes state = NextState(random, base);
    Bytes delta;
    Bytes made(5, std::byte{9});
    state_bytes += state.size();
    if (EncodeStateDelta(base, state, delta)) {
      CHECK(delta.size() < state.size());
      CHECK_OK(DecodeStateDelta(base, delta, state.size(), made));
      CHECK(Same(made, state));
      sent_bytes += delta.size();
    } else {
      sent_bytes += state.size();
    }
    base = state;
  }
  CHECK(sent_bytes < state_bytes / 10);
  Bytes delta;
  CHECK(!EncodeStateDelta(base, {}, delta));
  CHECK(!EncodeStateDelta({}, Bytes(100), delta));
  CHECK(!EncodeStateDelta(RandomBytes(random, 5000), RandomBytes(random, 5000), delta));
}

TEST("state deltas that lie are refused") {
  Random random(12);
  const Bytes base = RandomBytes(random, 1000);
  Bytes state = base;
  state[500] ^= std::byte{1};
  state.resize(1100, std::byte{3});
  Bytes delta;
  CHECK(EncodeStateDelta(base, state, delta));
  Bytes made;
  const auto decode = [&](const Bytes& bytes, uint64_t bytes_max = 2000) {
    return DecodeStateDelta(base, bytes, bytes_max, made);
  };
  CHECK_OK(decode(delta));
  REFUSED(decode(delta, 1099), "state bytes 1100 exceed 1099");
  REFUSED(decode(Bytes(15)), "within its head");
  REFUSED(decode(Bytes(delta.begin(), delta.begin() + 16)), "nothing fills");
  CHECK_ERROR(DecodeStateDelta(RandomBytes(random, 1000), delta, 2000, made),
              ErrorCode::kChecksum, "digest");
  REFUSED(DecodeStateDelta(Bytes(900), delta, 2000, made), "nothing fills");
  const auto with = [&](uint64_t bytes, std::initializer_list<int> changes) {
    Bytes lie(kStateDeltaHeadBytes);
    std::memcpy(lie.data(), &bytes, sizeof bytes);
    for (const int change : changes) lie.push_back(static_cast<std::byte>(change));
    return lie;
  };
  REFUSED(decode(with(1100, {})), "nothing fills");
  REFUSED(decode(with(uint64_t{1} << 60, {}), ~uint64_t{0}), "nothing fills");
  REFUSED(decode(with(1000, {0x80})), "ends within a number");
  REFUSED(decode(with(1000, {0, 4, 1})), "ends within a change");
  REFUSED(decode(with(1000, {0xe8, 7, 0, 1})), "outside the state");
  REFUSED(decode(with(10, {9, 1, 1, 1})), "outside the state");
  REFUSED(decode(with(10, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 1})),
          "outside the state");
  // Every byte of it counts.
  for (size_t at = 0; at < delta.size(); at++) {
    Bytes changed = delta;
    changed[at] ^= std::byte{0x41};
    CHECK(!decode(changed).ok());
  }
}

TEST("a torn base round is to be repeated") {
  FrameDecoder decoder = Connected(Limits());
  CHECK_OK(Begin(decoder, 0, kFlagBase));
  decoder.NewConnection(1);
  REFUSED(Begin(decoder, 1), "never ended");
  CHECK_OK(Begin(decoder, 0, kFlagBase));
  CHECK_OK(EndRound(decoder, {0, 0}));
  CHECK_OK(Begin(decoder, 1));
}

TEST("the page bitmap agrees with a plain one") {
  Random random(2);
  constexpr uint64_t kPages = 20'000;
  PageBitmap bitmap(kPages);
  for (int round = 0; round < 3; round++) {
    std::vector<bool> model(kPages);
    for (int i = 0; i < 200; i++) {
      const uint64_t first = random() % kPages;
      const uint64_t count = 1 + random() % std::min<uint64_t>(kPages - first, 300);
      bool fresh = true;
      for (uint64_t page = first; page < first + count; page++) {
        fresh = fresh && !model[page];
        model[page] = true;
      }
      CHECK(bitmap.Add(first, count) == fresh);
    }
    for (uint64_t page = 0; page < kPages; page++) CHECK(bitmap.Test(page) == model[page]);
    bitmap.Clear();
    for (uint64_t page = 0; page < kPages; page++) CHECK(!bitmap.Test(page));
  }
}

TEST("zero pages are those without any bit") {
  for (const size_t size : {size_t{4096}, size_t{2} << 20}) {
    Bytes page(size);
    CHECK(IsZeroPage(page.data(), size));
    for (const size_t at : {size_t{0}, size_t{63}, size_t{64}, size / 2, size - 1}) {
      page[at] = std::byte{1};
      CHECK(!IsZeroPage(page.data(), size));
      page[at] = std::byte{0};
    }
  }
}

TEST("the digest does not depend on the processor") {
  Random random(4);
  const Bytes bytes = RandomBytes(random, 5000);
  const DigestFunctions* fast = Avx2DigestFunctions();
  if (fast == nullptr) return;  // one set of functions, nothing to compare
  for (size_t count = 0; count <= bytes.size(); count += 1 + random() % 40) {
    CHECK_EQ(fast->hash(bytes.data(), count), kDigestFunctions.hash(bytes.data(), count));
    // Begun by one and ended by the other: the state is the same, too.
    alignas(64) std::byte state[576];
    kDigestFunctions.reset(state);
    const size_t first = random() % (count + 1);
    if (first > 0) kDigestFunctions.update(state, bytes.data(), first);
    if (count > first) fast->update(state, bytes.data() + first, count - first);
    CHECK_EQ(fast->value(state), kDigestFunctions.value(state));
    CHECK_EQ(fast->value(state), kDigestFunctions.hash(bytes.data(), count));
  }
}

TEST("the digest does not depend on how it was fed") {
  Random random(3);
  const Bytes bytes = RandomBytes(random, 100'000);
  Digest digest;
  digest.Update({});
  for (size_t at = 0; at < bytes.size();) {
    const size_t count = std::min<size_t>(random() % 9000, bytes.size() - at);
    digest.Update(std::span(bytes).subspan(at, count));
    at += count;
  }
  CHECK_EQ(digest.Value(), HashBytes(bytes));
  digest.Reset();
  CHECK_EQ(digest.Value(), HashBytes({}));
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
