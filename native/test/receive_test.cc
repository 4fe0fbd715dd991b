// Who may connect, what is refused, what is bounded, and what is left behind.

#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/thread.h"
#include "receive/staging.h"
#include "test/lab.h"
#include "wire/digest.h"
#include "wire/frame.h"
#include "wire/run_table.h"

namespace holdfast::test {
namespace {

constexpr uint64_t kRamBytes = 64 * 4096;

Bytes Concat(std::initializer_list<std::span<const std::byte>> parts) {
  Bytes all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Bytes HelloFrame(const HelloBody& body) {
  return Concat(
      {EncodeHeader({.type = FrameType::kHello, .payload_bytes = HelloBody::kBytes}),
       EncodeHello(body)});
}

// As long as that of version 1.
Bytes ShortHelloFrame(const HelloBody& body) {
  const auto payload = EncodeHello(body);
  return Concat(
      {EncodeHeader({.type = FrameType::kHello, .payload_bytes = HelloBody::kVersion1Bytes}),
       std::span(payload).first<HelloBody::kVersion1Bytes>()});
}

HelloBody GoodHello() {
  HelloBody hello;
  hello.page_size = 4096;
  hello.ram_bytes = kRamBytes;
  hello.token = Token(7);
  return hello;
}

struct Answered {
  ErrorCode code;
  std::string message;
};

// Reads to the end; the last frame must be an ERROR.
Answered ErrorOf(RawClient& client) {
  const Bytes all = client.Drain();
  size_t at = 0;
  while (at + kFrameHeaderBytes <= all.size()) {
    auto header = DecodeHeader(std::span(all).subspan(at).first<kFrameHeaderBytes>(), 0);
    CHECK_OK(header);
    at += kFrameHeaderBytes;
    if (header.value().type == FrameType::kError) {
      const Error error = DecodeError(std::span(all).subspan(at));
      return {error.code, error.message};
    }
    at += header.value().payload_bytes;
  }
  Fail(__FILE__, __LINE__, "no ERROR frame came");
}

void CheckRefused(uint16_t port, std::span<const std::byte> bytes, ErrorCode code,
                  const char* text) {
  RawClient client(port);
  client.Send(bytes);
  const Answered answered = ErrorOf(client);
  if (answered.code != code || answered.message.find(text) == std::string::npos) {
    Fail(__FILE__, __LINE__, std::string("expected ") + text + ", got " + answered.message);
  }
}

TEST("strangers: wrong token, version, sizes, garbage; the connection in use is not disturbed") {
  const TempDir dir;
  Backup backup;
  const uint16_t port = backup->port();
  CheckRefused(port, HelloFrame(GoodHello()), ErrorCode::kAuth, "token refused");
  CHECK(backup->idle_ms() > 1e300);

  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", kRamBytes)));
  CHECK_ERROR(backup->OpenSession(Backup::SessionFor(dir / "ram2", kRamBytes)),
              ErrorCode::kLimit, "open already");
  const CancelSignal cancel;
  const EpochWriter::Hello hello{Token(7), 4096, kRamBytes};
  auto writer = ConnectWriter(port, hello, Strategy::kCopy, cancel);
  CHECK_OK(writer);

  HelloBody wrong = GoodHello();
  wrong.token = Token(8);
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kAuth, "token refused");
  wrong = GoodHello();
  wrong.version = 2;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kProtocol, "version 2");
  wrong = GoodHello();
  wrong.version = 1;
  CheckRefused(port, ShortHelloFrame(wrong), ErrorCode::kProtocol, "version 1");
  wrong = GoodHello();
  CheckRefused(port, ShortHelloFrame(wrong), ErrorCode::kProtocol, "payloadBytes 48, not 64");
  wrong.streams = kStreamsMax + 1;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kProtocol, "streams 17");
  wrong = GoodHello();
  wrong.stream = 1;
  wrong.link = 1;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kProtocol, "stream 1 of 1");
  wrong.streams = 2;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kConnect, "belongs to no connection");
  wrong.link = 0;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kProtocol, "link 0 of stream 1");
  wrong = GoodHello();
  wrong.flags = 8;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kProtocol, "flags 0x00000008");
  wrong = GoodHello();
  wrong.flags = HelloBody::kFlagPages;
  wrong.token = Token(8);
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kAuth, "token refused");
  wrong = GoodHello();
  wrong.page_size = 8192;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kProtocol, "page size 8192");
  wrong = GoodHello();
  wrong.ram_bytes = 4096;
  CheckRefused(port, HelloFrame(wrong), ErrorCode::kProtocol, "RAM bytes 4096");
  CheckRefused(port, Bytes(200, std::byte{'x'}), ErrorCode::kProtocol, "magic");
  CheckRefused(port, EncodeHeader({.type = FrameType::kBegin, .epoch = 1}), ErrorCode::kProtocol,
               "HELLO");
  CheckRefused(port, HelloFrame(GoodHello()), ErrorCode::kConnect, "has a bulk connection");
  CHECK_ERROR(ConnectWriter(port, {Token(1), 4096, kRamBytes}, Strategy::kCopy, cancel),
              ErrorCode::kAuth, "token refused");

  // More who say nothing than there are places.
  std::vector<std::unique_ptr<RawClient>> idlers;
  for (int i = 0; i < 12; i++) idlers.push_back(std::make_unique<RawClient>(port));
  const GuestRam ram(64, 4096);
  CHECK_OK(SendEpoch(*writer.value(), ram, ram.All(), 1, {}));
  CHECK(backup->idle_ms() < kDeadlineMs);
  for (auto& idler : idlers) CHECK(idler->Drain().empty());

  // Once the first has ended, its token serves again, but not for a base round.
  writer = Error::Of(ErrorCode::kCancelled, "replaced");
  backup.Await(ReceiverEvent::Type::kDisconnected);
  auto second = ConnectWriter(port, hello, Strategy::kCopy, cancel);
  CHECK_OK(second);
  CHECK_ERROR(SendRound(*second.value(), ram, ram.All()), ErrorCode::kProtocol,
              "base round after epoch 1");
}

TEST("what an authenticated primary may not send") {
  const auto refuse = [](std::span<const std::byte> bytes, ErrorCode code, const char* text) {
    const TempDir dir;
    Backup backup;
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", kRamBytes)));
    RawClient client(backup->port());
    client.Send(HelloFrame(GoodHello()));
    client.Send(bytes);
    const Answered answered = ErrorOf(client);
    const ReceiverEvent ended = backup.Await(ReceiverEvent::Type::kDisconnected);
    if (answered.code != code || ended.error.code != code ||
        answered.message.find(text) == std::string::npos) {
      Fail(__FILE__, __LINE__, std::string("expected ") + text + ", got " + answered.message);
    }
    auto fenced = backup->Fence();
    CHECK_OK(fenced);
    CHECK_EQ(fenced.value().epoch, uint64_t{0});
  };
  const auto frame = [](FrameType type, uint32_t table_bytes, uint64_t payload_bytes,
                        uint64_t epoch = 1) {
    return EncodeHeader({.type = type,
                         .epoch = epoch,
                         .table_bytes = table_bytes,
                         .payload_bytes = payload_bytes});
  };
  const HeaderBytes begin = frame(FrameType::kBegin, 0, 0);
  RunTableWriter table;
  table.Add({64, 1});
  const auto run = table.bytes();
  const auto run_bytes = static_cast<uint32_t>(run.size());

  refuse(Bytes(5000, std::byte{0xff}), ErrorCode::kProtocol, "magic");
  refuse(HelloFrame(GoodHello()), ErrorCode::kProtocol, "HELLO");
  refuse(frame(FrameType::kPages, 12, 4096), ErrorCode::kProtocol, "PAGES");
  // Its pages are read before its table is judged.
  refuse(Concat({begin, frame(FrameType::kPages, run_bytes, 4096), run, Bytes(4096)}),
         ErrorCode::kProtocol, "first page 64");
  refuse(Concat({begin, frame(FrameType::kZero, run_bytes, 0), run}), ErrorCode::kProtocol,
         "first page 64");
  refuse(Concat({begin, frame(FrameType::kPages, 12, kPagesBytesMax)}), ErrorCode::kProtocol,
         "for one epoch");
  refuse(Concat({begin, frame(FrameType::kPages, 12, ~uint64_t{0})}), ErrorCode::kProtocol,
         "payloadBytes");
  refuse(Concat({begin, frame(FrameType::kDevice, 0, (1 << 20) + 1)}), ErrorCode::kProtocol,
         "payloadBytes 1048577");
  const auto commit = EncodePart({{0, 0}, 123});
  refuse(Concat({begin, frame(FrameType::kDevice, 0, 0),
                 frame(FrameType::kCommit, 0, PartBody::kBytes), commit}),
         ErrorCode::kChecksum, "digest");
  // No disk was told to this session.
  RunTableWriter first;
  first.Add({0, 1});
  const auto one_page = first.bytes();
  refuse(Concat({begin,
                 frame(FrameType::kReferences, static_cast<uint32_t>(one_page.size()), 32),
                 one_page, Bytes(32), Bytes(1000)}),
         ErrorCode::kProtocol, "disk 0 is unknown");
  // Megabytes after the offence: the reason must still get through.
  refuse(Concat({frame(FrameType::kDevice, 0, 0), Bytes(3 << 20)}), ErrorCode::kProtocol,
         "DEVICE");
}

TEST("a sender in the middle of an epoch learns why it was refused") {
  const TempDir dir;
  Backup backup;
  Random random(3);
  GuestRam ram(8192, 4096);
  ram.Scribble(random, 16'384);
  auto session = Backup::SessionFor(dir / "ram", ram.bytes());
  session.epoch_bytes_max = 6 << 20;
  CHECK_OK(backup->OpenSession(session));
  const CancelSignal cancel;
  auto writer =
      ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()}, Strategy::kSplice, cancel);
  CHECK_OK(writer);
  CHECK_ERROR(SendEpoch(*writer.value(), ram, ram.All(), 1, {}), ErrorCode::kProtocol,
              "for one epoch");
}

TEST("closing and destroying at any moment ends at once and leaves nothing") {
  const int before = OpenDescriptors();
  Random random(21);
  for (int i = 0; i < 14; i++) {
    const TempDir dir;
    Backup backup;
    GuestRam ram(4096, 4096);
    ram.Scribble(random, 6000);
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
    const CancelSignal cancel;
    auto writer = ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()},
                                kAllStrategies[i % 3], cancel, i % 4 + 1);
    CHECK_OK(writer);
    std::thread primary([&] {
      Status sent = SendRound(*writer.value(), ram, ram.All());
      for (uint64_t epoch = 1; sent.ok(); epoch++) {
        sent = SendEpoch(*writer.value(), ram, ram.All(), epoch, {});
      }
      CHECK_EQ(sent.error().code, ErrorCode::kPeerLost);
    });
    ::usleep(static_cast<useconds_t>(random() % 30'000));
    if (i % 2 == 0) CHECK_OK(backup->CloseSession());
    backup.Close();
    CHECK_EQ(backup.Await(ReceiverEvent::Type::kDisconnected).error.code, ErrorCode::kCancelled);
    primary.join();
  }
  CHECK_EQ(OpenDescriptors(), before);
  CHECK_EQ(g_descriptors_open.load(), 0);
  CHECK_EQ(g_threads_open.load(), 0);
}

TEST("a session after a session; without one there is nothing to fence") {
  const TempDir dir;
  Backup backup;
  CHECK_ERROR(backup->Fence(), ErrorCode::kStateLoad, "no session");
  CHECK_ERROR(backup->WriteState(dir / "standby"), ErrorCode::kStateLoad, "no session");
  CHECK_OK(backup->CloseSession());
  for (int i = 0; i < 3; i++) {
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", kRamBytes)));
    const CancelSignal cancel;
    auto writer =
        ConnectWriter(backup->port(), {Token(7), 4096, kRamBytes}, Strategy::kCopy, cancel);
    CHECK_OK(writer);
    const GuestRam ram(64, 4096);
    const Bytes device(10, std::byte{1});
    CHECK_OK(SendEpoch(*writer.value(), ram, ram.All(), 1, device));
    CHECK_ERROR(backup->WriteState(dir / "standby"), ErrorCode::kStateLoad, "not fenced");
    auto fenced = backup->Fence();
    CHECK_OK(fenced);
    CHECK_EQ(fenced.value().epoch, uint64_t{1});
    CHECK_ERROR(
        ConnectWriter(backup->port(), {Token(7), 4096, kRamBytes}, Strategy::kCopy, cancel),
        ErrorCode::kFenced, "no longer");
    CHECK_ERROR(backup->WriteState(dir / "nobody"), ErrorCode::kStateLoad, "nobody");
    CHECK_OK(backup->CloseSession());
    CHECK_EQ(ReadFile(dir / "ram").size(), size_t{kRamBytes});
  }
}

TEST("no room: the error says how much, and no file stays") {
  const TempDir dir;
  Backup backup;
  auto session = Backup::SessionFor(dir / "missing/ram", kRamBytes);
  CHECK_ERROR(backup->OpenSession(session), ErrorCode::kSyscall, "missing/ram");
  session = Backup::SessionFor(dir.path(), kRamBytes);
  CHECK_ERROR(backup->OpenSession(session), ErrorCode::kSyscall, "not a regular file");
  session = Backup::SessionFor(dir / "ram", kRamBytes + 1);
  CHECK_ERROR(backup->OpenSession(session), ErrorCode::kLimit, "multiple of pageSize");

  const std::string small = dir / "small";
  CHECK(::mkdir(small.c_str(), 0700) == 0);
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m") != 0) {
    std::printf(" SKIPPED in part: mounting a tmpfs: %s", std::strerror(errno));
    return;
  }
  const Status opened = backup->OpenSession(Backup::SessionFor(small + "/ram", 8 << 20));
  const bool left = ::access((small + "/ram").c_str(), F_OK) == 0;
  const Status fits = backup->OpenSession(Backup::SessionFor(small + "/ram", 512 << 10));
  (void)backup->CloseSession();
  // Sparse: somebody else has taken the room when the first page comes.
  GuestRam ram(128, 4096);
  Random random(8);
  ram.Scribble(random, 256);
  const auto send_sparse = [&](bool filled) -> Status {
    auto session = Backup::SessionFor(small + "/ram", ram.bytes());
    session.sparse = true;
    HF_TRY(backup->OpenSession(session));
    const Descriptor filler(::open((small + "/filler").c_str(), O_RDWR | O_CREAT, 0600));
    if (filled) CHECK_EQ(::fallocate(filler.get(), 0, 0, 900 << 10), 0);
    const CancelSignal cancel;
    auto writer =
        ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()}, Strategy::kCopy, cancel);
    if (!writer.ok()) return writer.error();
    const Status sent = SendRound(*writer.value(), ram, ram.All());
    (void)backup->CloseSession();
    return sent;
  };
  const Status sparse_fits = send_sparse(false);
  const Status sparse_full = send_sparse(true);
  ::umount2(small.c_str(), MNT_DETACH);
  CHECK_ERROR(opened, ErrorCode::kNoSpace, "8388608 bytes wanted, 1048576 of 1048576 free");
  CHECK(!left);
  CHECK_OK(fits);
  CHECK_OK(sparse_fits);
  CHECK_ERROR(sparse_full, ErrorCode::kNoSpace, "524288 bytes wanted");
}

TEST("IPv6, and a name") {
  for (const char* host : {"::1", "localhost"}) {
    const TempDir dir;
    Backup backup(host);
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", kRamBytes)));
    const CancelSignal cancel;
    CHECK_OK(EpochWriter::Connect(host, backup->port(), {Token(7), 4096, kRamBytes}, 2, 5'000,
                                  cancel));
  }
  CHECK(!Receiver::Listen("192.0.2.1", 0, [](const ReceiverEvent&) {}).ok());
  Backup first;
  CHECK_ERROR(Receiver::Listen("127.0.0.1", first->port(), [](const ReceiverEvent&) {}),
              ErrorCode::kSyscall, "listening on 127.0.0.1");
}

TEST("staging grows, is reused, and gives memory back") {
  auto reserved = EpochStaging::Reserve(uint64_t{100} << 20);
  CHECK_OK(reserved);
  EpochStaging staging = std::move(reserved).value();
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < 5; i++) {
      auto place = staging.Place(uint64_t{20} << 20);
      CHECK_OK(place);
      staging.AddSegment(0, Bytes(24), place.value());
      place.value().front() = place.value().back() = std::byte{1};
    }
    CHECK_EQ(staging.used_bytes(), uint64_t{100} << 20);
    CHECK_EQ(staging.segments().size(), size_t{5});
    staging.Clear();
    CHECK_EQ(staging.resident_bytes(), uint64_t{100} << 20);
  }
  staging.Trim(uint64_t{30} << 20);
  CHECK_EQ(staging.resident_bytes(), uint64_t{30} << 20);
  CHECK_OK(staging.Place(uint64_t{90} << 20));
  CHECK_EQ(staging.resident_bytes(), uint64_t{90} << 20);
  staging.Clear();
  staging.Trim(0);
  CHECK_EQ(staging.resident_bytes(), uint64_t{0});
}

// Back to back, so that epochs arrive while others are applied, some of them
// larger than both may be in memory at once.
TEST("large and small epochs in turn, arriving while others are applied") {
  constexpr uint64_t kEpochs = 5;
  const TempDir dir;
  Backup backup;
  Random random(31);
  GuestRam ram(18 * 1024, 4096);
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
  const CancelSignal cancel;
  auto writer =
      ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()}, Strategy::kCopy, cancel);
  CHECK_OK(writer);
  for (uint64_t epoch = 1; epoch <= kEpochs; epoch++) {
    const bool large = epoch == 2 || epoch == 3;
    const uint64_t pages = large ? 17 * 1024 : 100;
    const auto first = static_cast<uint32_t>(random() % (18 * 1024 - pages));
    for (uint64_t page = first; page < first + pages; page++) {
      std::memset(ram.page(page), static_cast<int>(1 + random() % 255), 4096);
    }
    CHECK_OK(SendEpoch(*writer.value(), ram, {{first, first, static_cast<uint32_t>(pages)}},
                       epoch, {}));
  }
  CHECK_OK(backup->Fence());
  CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
  uint64_t applied = 0;
  uint64_t committed = 0;
  for (const ReceiverEvent& event : backup.Events()) {
    if (event.type == ReceiverEvent::Type::kCommitted) CHECK_EQ(event.epoch, ++committed);
    if (event.type == ReceiverEvent::Type::kApplied) CHECK_EQ(event.epoch, ++applied);
    CHECK(applied <= committed);
  }
  CHECK_EQ(applied, kEpochs);
}

TEST("sockets that are handed to both sides, without an address") {
  const TempDir dir;
  Random random(41);
  GuestRam ram(600, 4096);
  ram.Scribble(random, 900);
  std::atomic<int> connected{0};
  auto receiver = Receiver::Create([&](const ReceiverEvent& event) {
    if (event.type == ReceiverEvent::Type::kConnected) connected++;
  });
  CHECK_OK(receiver);
  CHECK_EQ(receiver.value()->port(), uint16_t{0});
  CHECK_OK(receiver.value()->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  receiver.value()->Adopt(Descriptor(ends[0]));
  const CancelSignal cancel;
  auto writer =
      EpochWriter::Adopt(Descriptor(ends[1]), {Token(7), 4096, ram.bytes()}, 5'000, cancel);
  CHECK_OK(writer);
  CHECK_OK(SendRound(*writer.value(), ram, ram.All()));
  ram.Scribble(random, 100);
  CHECK_OK(SendEpoch(*writer.value(), ram, ram.TakeDirty(), 1, {}));
  CHECK_OK(receiver.value()->Fence());
  CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
  CHECK_EQ(connected.load(), 1);
}

TEST("the sides agree on digests: either may want none") {
  for (const bool ours : {true, false}) {
    for (const bool theirs : {true, false}) {
      const TempDir dir;
      Backup backup;
      const GuestRam ram(64, 4096);
      std::memset(ram.page(3), 1, 4096);
      auto session = Backup::SessionFor(dir / "ram", ram.bytes());
      session.verify = theirs;
      CHECK_OK(backup->OpenSession(session));
      const CancelSignal cancel;
      auto writer = ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes(), ours},
                                  Strategy::kCopy, cancel, 2);
      CHECK_OK(writer);
      CHECK(writer.value()->verified() == (ours && theirs));
      CHECK_OK(SendEpoch(*writer.value(), ram, ram.All(), 1, Bytes(5000)));
      const ReceiverEvent committed = backup.Await(ReceiverEvent::Type::kCommitted);
      CHECK((committed.digest_ms > 0) == (ours && theirs));
      CHECK(committed.syscalls > 0 && committed.cpu_ms > 0);
    }
  }
}

TEST("a thousand epochs leave descriptors and threads as they were") {
  const TempDir dir;
  const int before = OpenDescriptors();
  {
    Backup backup;
    Random random(43);
    GuestRam ram(400, 4096);
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
    const CancelSignal cancel;
    auto writer = ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()}, Strategy::kCopy,
                                cancel, 3);
    CHECK_OK(writer);
    // From then on all receive threads run: HELLO_OK may leave before its stream's does.
    CHECK_OK(SendEpoch(*writer.value(), ram, ram.TakeDirty(), 1, Bytes(100)));
    const int connected = OpenDescriptors();
    const int threads = g_threads_open;
    for (uint64_t epoch = 2; epoch <= 1000; epoch++) {
      ram.Scribble(random, random() % 150);
      writer.value()->UseStrategy(kAllStrategies[epoch % kStrategyCount]);
      CHECK_OK(SendEpoch(*writer.value(), ram, ram.TakeDirty(), epoch, Bytes(100)));
    }
    // Pipes and rings that senders made when they were first used, on each stream.
    constexpr int kSenderDescriptorsMax = 3 * 8;
    CHECK(OpenDescriptors() <= connected + kSenderDescriptorsMax);
    CHECK_EQ(g_threads_open.load(), threads);
    CHECK_OK(backup->Fence());
    CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
  }
  CHECK_EQ(OpenDescriptors(), before);
  CHECK_EQ(g_descriptors_open.load(), 0);
  CHECK_EQ(g_threads_open.load(), 0);
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
