// Frames of the disk stream and their order, without a socket.

#include "test/lab.h"
#include "wire/disk_decoder.h"

namespace holdfast::test {
namespace {

constexpr uint64_t kImageBytes = 10 << 20;

Status Show(DiskDecoder& decoder, FrameType type, const Bytes& payload, uint64_t epoch = 0) {
  const FrameHeader header{.type = type, .epoch = epoch, .payload_bytes = payload.size()};
  auto decoded = decoder.Header(EncodeHeader(header));
  if (!decoded.ok()) return decoded.error();
  const auto head = std::span(payload).first(DiskDecoder::HeadBytes(header));
  const auto status = [](const auto& result) { return result.ok() ? Status() : Status(result.error()); };
  switch (type) {
    case FrameType::kDiskSync: return status(decoder.Sync(head));
    case FrameType::kDiskBase: return status(decoder.Base(header, head));
    case FrameType::kDiskLog: return status(decoder.Log(header, head));
    case FrameType::kDiskSynced: return status(decoder.Synced(head));
    default: return status(decoder.Boundary(header, head));
  }
}

template <typename Head>
Bytes Behind(const Head& head, size_t data_bytes) {
  Bytes bytes(head.begin(), head.end());
  bytes.resize(bytes.size() + data_bytes);
  return bytes;
}

Status Sync(DiskDecoder& decoder, std::vector<DiskPlan> plans) {
  return Show(decoder, FrameType::kDiskSync, EncodeDiskPlans(plans));
}
Status Base(DiskDecoder& decoder, const DiskBaseBody& body, size_t data_bytes) {
  return Show(decoder, FrameType::kDiskBase, Behind(EncodeDiskBase(body), data_bytes));
}
Status Log(DiskDecoder& decoder, uint32_t disk, uint64_t lsn, size_t bytes) {
  return Show(decoder, FrameType::kDiskLog, Behind(EncodeDiskLog({disk, lsn}), bytes));
}
Status Synced(DiskDecoder& decoder, std::byte fill = std::byte{1}) {
  return Show(decoder, FrameType::kDiskSynced, Bytes(sizeof(SyncId), fill));
}
Status Boundary(DiskDecoder& decoder, uint64_t epoch, std::vector<uint64_t> lsns) {
  return Show(decoder, FrameType::kDiskBoundary, EncodeDiskBoundary(lsns), epoch);
}

#define REFUSED(result, text) CHECK_ERROR(result, ErrorCode::kProtocol, text)

TEST("lists of disks round-trip, and each of their bytes is looked at") {
  std::vector<DiskState> states(2);
  states[0] = {"virtio0", kImageBytes, {}, false, true, 0};
  states[1] = {std::string(kDiskIdBytesMax, 'x'), 65537, {}, true, false, 2};
  states[1].sync_id.fill(std::byte{9});
  const std::vector<std::byte> bytes = EncodeDiskStates(states);
  auto back = DecodeDiskStates(bytes);
  CHECK_OK(back);
  for (size_t i = 0; i < states.size(); i++) {
    const DiskState& had = states[i];
    const DiskState& has = back.value()[i];
    CHECK(has.id == had.id && has.image_bytes == had.image_bytes && has.sync_id == had.sync_id);
    CHECK(has.trusted == had.trusted && has.fresh == had.fresh);
    CHECK_EQ(has.marked_blocks, had.marked_blocks);
  }
  for (size_t bytes_left = 0; bytes_left < bytes.size(); bytes_left++) {
    CHECK(!DecodeDiskStates(std::span(bytes).first(bytes_left)).ok());
  }
  const auto refuse = [&](size_t at, int value, const char* text) {
    std::vector<std::byte> wrong = bytes;
    wrong[at] = static_cast<std::byte>(value);
    REFUSED(DecodeDiskStates(wrong), text);
  };
  refuse(0, 0, "0 disks");
  refuse(0, kDisksMax + 1, "33 disks");
  refuse(4, 1, "1 behind it");
  refuse(8 + 32, 4, "flags 0x0004");
  refuse(8 + 36, 1, "where zeros belong");
  refuse(8 + 8, 161, "161 blocks marked");
  refuse(8 + 40, ' ', "a disk's id");
  refuse(8 + 41, '/', "a disk's id");

  auto plans = DecodeDiskPlans(EncodeDiskPlans(std::vector<DiskPlan>{{DiskPlan::What::kChanged, 5}}));
  CHECK_OK(plans);
  CHECK(plans.value()[0].what == DiskPlan::What::kChanged && plans.value()[0].lsn == 5);
  auto lsns = DecodeDiskBoundary(EncodeDiskBoundary(std::vector<uint64_t>{1, 1ull << 60}));
  CHECK_OK(lsns);
  CHECK(lsns.value() == (std::vector<uint64_t>{1, 1ull << 60}));
}

TEST("the order of the disk stream") {
  DiskDecoder decoder({kImageBytes, kImageBytes});
  REFUSED(Log(decoder, 0, 0, 8), "DISK_LOG frame: type 21 is out of order");
  REFUSED(Synced(decoder), "out of order");
  REFUSED(Sync(decoder, {{}}), "1 disks of 2");
  CHECK_OK(Sync(decoder, {{DiskPlan::What::kAll, 100}, {DiskPlan::What::kChanged, 7}}));
  REFUSED(Sync(decoder, {{}, {}}), "out of order");
  CHECK_OK(Log(decoder, 0, 100, 30));
  REFUSED(Log(decoder, 0, 100, 30), "LSN 100 of disk 0, not 130");
  REFUSED(Log(decoder, 2, 0, 30), "disk 2 of 2");
  CHECK_OK(Base(decoder, {1, DiskBaseBody::Kind::kData, 0, 4096}, 4096));
  CHECK_OK(Base(decoder, {0, DiskBaseBody::Kind::kHole, 4096, kImageBytes - 4096}, 0));
  REFUSED(Boundary(decoder, 1, {130, 7}), "out of order");
  REFUSED(Synced(decoder, std::byte{0}), "no sync id");
  CHECK_OK(Synced(decoder));
  REFUSED(Base(decoder, {1, DiskBaseBody::Kind::kHole, 0, 4096}, 0), "out of order");
  CHECK_OK(Log(decoder, 1, 7, 10));
  REFUSED(Boundary(decoder, 1, {130}), "1 disks of 2");
  REFUSED(Boundary(decoder, 1, {131, 7}), "LSN 131 of disk 0 is outside 130 to 130");
  CHECK_OK(Boundary(decoder, 1, {130, 12}));
  REFUSED(Boundary(decoder, 1, {130, 17}), "epoch 1 does not follow 1");
  REFUSED(Boundary(decoder, 2, {130, 11}), "LSN 11 of disk 1 is outside 12 to 17");
  CHECK_OK(Boundary(decoder, 9, {130, 17}));
  REFUSED(Show(decoder, FrameType::kDiskLog, Behind(EncodeDiskLog({0, 130}), 8), 9), "epoch 9");
  for (const FrameType type : {FrameType::kDiskReady, FrameType::kBegin, FrameType::kAck}) {
    const Bytes payload(type == FrameType::kAck ? AckBody::kBytes : 0);
    REFUSED(Show(decoder, type, payload), "on the disk stream");
  }
}

TEST("what does not fit a disk is refused before any of it is used") {
  DiskDecoder decoder({kImageBytes});
  CHECK_OK(Sync(decoder, {{DiskPlan::What::kAll, 0}}));
  using Kind = DiskBaseBody::Kind;
  REFUSED(Base(decoder, {1, Kind::kHole, 0, 1}, 0), "disk 1 of 1");
  REFUSED(Base(decoder, {0, Kind::kHole, 0, 0}, 0), "0 bytes at 0");
  REFUSED(Base(decoder, {0, Kind::kHole, 1, ~uint64_t{0}}, 0), "bytes at 1");
  REFUSED(Base(decoder, {0, Kind::kHole, kImageBytes, 1}, 0), "1 bytes at 10485760 of 10485760");
  REFUSED(Base(decoder, {0, Kind::kHole, 0, 8}, 8), "payloadBytes 32 for 0");
  REFUSED(Base(decoder, {0, Kind::kData, 0, 8}, 7), "payloadBytes 31 for 8");
  REFUSED(Base(decoder, {0, Kind::kData, 0, 2 << 20}, 2 << 20), "payloadBytes");
  REFUSED(Base(decoder, {0, static_cast<Kind>(3), 0, 8}, 8), "kind 3");
  REFUSED(Log(decoder, 0, 0, 0), "payloadBytes 16");
  REFUSED(Log(decoder, 0, 0, kDiskPieceBytesMax + 1), "payloadBytes");
  CHECK_OK(Log(decoder, 0, 0, kDiskPieceBytesMax));
  REFUSED(Show(decoder, FrameType::kDiskSynced, Bytes(15)), "payloadBytes 15");
}

TEST("the disk stream says hello as a stream of its own") {
  HelloBody hello;
  hello.flags = HelloBody::kFlagDisks;
  hello.streams = 4;
  REFUSED(CheckHello(hello), "link 0 of disk stream 0");
  hello.link = 3;
  CHECK_OK(CheckHello(hello));
  hello.stream = 1;
  REFUSED(CheckHello(hello), "stream 1 of the disks");
  hello.flags = 8;
  REFUSED(CheckHello(hello), "flags 0x00000008");
}

TEST("so does the page stream, which is one by itself") {
  HelloBody hello;
  hello.flags = HelloBody::kFlagPages;
  CHECK_OK(CheckHello(hello));
  hello.link = 3;
  REFUSED(CheckHello(hello), "link 3 of stream 0");
  hello.link = 0;
  hello.flags |= HelloBody::kFlagDisks;
  REFUSED(CheckHello(hello), "link 0 of disk stream 0");
  hello.link = 3;
  REFUSED(CheckHello(hello), "the page stream is one by itself");
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
