// The strategies by themselves over a small socket buffer; then EpochWriter
// with each of them against a Receiver.

#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>

#include <filesystem>

#include "base/clock.h"
#include "send/page_sender.h"
#include "test/lab.h"
#include "wire/frame.h"

namespace holdfast::test {
namespace {

constexpr Strategy kStrategies[] = {Strategy::kCopy, Strategy::kSendfile, Strategy::kSplice};

struct Pair {
  Descriptor ours;
  Descriptor theirs;
};

// Connected TCP sockets with buffers far smaller than what is sent.
Pair SmallTcpPair() {
  constexpr int kSmall = 4096;
  uint16_t port = 0;
  const Descriptor listener = ListenLoopback(&port, kSmall);
  Pair pair{ConnectLoopback(port, kSmall), AcceptOne(listener)};
  CHECK(pair.theirs.valid());
  return pair;
}

Pair SmallUnixPair() {
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const int small = 4096;
  ::setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

std::vector<Extent> RandomExtents(Random& random, uint64_t pages) {
  std::vector<Extent> extents;
  for (uint64_t page = 0; page < pages;) {
    const uint64_t count = std::min<uint64_t>(1 + random() % (random() % 8 == 0 ? 400 : 3),
                                              pages - page);
    if (random() % 2 == 0) extents.push_back({page * 4096, count * 4096});
    page += count;
  }
  return extents;
}

TEST("every strategy delivers the bytes exactly, through small buffers and a slow reader") {
  Random random(11);
  GuestRam ram(1500, 4096);
  ram.Scribble(random, 3000);
  for (const bool tcp : {true, false}) {
    for (const Strategy strategy : kStrategies) {
      for (int round = 0; round < 3; round++) {
        Pair pair = tcp ? SmallTcpPair() : SmallUnixPair();
        const CancelSignal cancel;
        const auto extents = RandomExtents(random, 1500);
        Bytes expected;
        for (const Extent& extent : extents) {
          const std::byte* from = ram.page(0) + extent.offset;
          expected.insert(expected.end(), from, from + extent.bytes);
        }
        Bytes received(expected.size());
        std::thread reader([&] {
          size_t done = 0;
          Random pace(static_cast<uint64_t>(round));
          while (done < received.size()) {
            const size_t want = std::min<size_t>(received.size() - done, 1 + pace() % 60'000);
            const ssize_t got = ::recv(pair.theirs.get(), received.data() + done, want, 0);
            CHECK(got > 0);
            done += static_cast<size_t>(got);
            if (pace() % 64 == 0) ::usleep(200);
          }
        });
        StreamSocket socket(std::move(pair.ours), cancel);
        const auto sender = PageSender::Make(strategy);
        CHECK_OK(sender->Send(ram.source(), extents, socket));
        CHECK(socket.syscalls() > 0);
        reader.join();
        CHECK(Same(received, expected));
      }
    }
  }
}

TEST("a source at an offset of its file") {
  Random random(12);
  GuestRam ram(64, 4096);
  ram.Scribble(random, 200);
  PageSource shifted = ram.source();
  shifted.file_offset = 16 * 4096;
  shifted.base += 16 * 4096;
  shifted.size -= 16 * 4096;
  const Extent extents[] = {{4096, 8192}, {4 * 4096, 4096}};
  for (const Strategy strategy : kStrategies) {
    Pair pair = SmallUnixPair();
    const CancelSignal cancel;
    Bytes received(3 * 4096);
    std::thread reader([&] {
      CHECK(::recv(pair.theirs.get(), received.data(), received.size(), MSG_WAITALL) ==
            static_cast<ssize_t>(received.size()));
    });
    StreamSocket socket(std::move(pair.ours), cancel);
    CHECK_OK(PageSender::Make(strategy)->Send(shifted, extents, socket));
    reader.join();
    CHECK(std::memcmp(received.data(), ram.page(17), 8192) == 0);
    CHECK(std::memcmp(received.data() + 8192, ram.page(20), 4096) == 0);
  }
}

TEST("a reader that dies is named, a cancelled send says so, a short source is an error") {
  Random random(13);
  GuestRam ram(2000, 4096);
  ram.Scribble(random, 4000);
  const Extent all{0, ram.bytes()};
  for (const Strategy strategy : kStrategies) {
    {
      Pair pair = SmallTcpPair();
      const CancelSignal cancel;
      StreamSocket socket(std::move(pair.ours), cancel);
      std::thread reader([&] {
        std::array<std::byte, 10'000> some;
        CHECK(::recv(pair.theirs.get(), some.data(), some.size(), MSG_WAITALL) > 0);
        pair.theirs.Close();
      });
      const Status sent = PageSender::Make(strategy)->Send(ram.source(), {&all, 1}, socket);
      reader.join();
      CHECK_ERROR(sent, ErrorCode::kPeerLost, "peer");
    }
    {
      Pair pair = SmallTcpPair();
      CancelSignal cancel;
      StreamSocket socket(std::move(pair.ours), cancel);
      std::thread canceller([&] {
        ::usleep(20'000);
        cancel.Cancel();
      });
      const Status sent = PageSender::Make(strategy)->Send(ram.source(), {&all, 1}, socket);
      canceller.join();
      CHECK_ERROR(sent, ErrorCode::kCancelled, "cancelled");
    }
  }
  for (const Strategy strategy : {Strategy::kSendfile, Strategy::kSplice}) {
    Pair pair = SmallTcpPair();
    const CancelSignal cancel;
    StreamSocket socket(std::move(pair.ours), cancel);
    const Extent beyond{ram.bytes(), 4096};
    CHECK_ERROR(PageSender::Make(strategy)->Send(ram.source(), {&beyond, 1}, socket),
                ErrorCode::kSyscall, "shorter");
  }
}

constexpr uint64_t kEpochs = 8;

struct Shape {
  uint64_t pages;
  uint32_t page_size;
  uint64_t dirty;
};

void RunEpochs(const Shape& shape, Strategy strategy, int chunk_delay_us) {
  Random random(shape.pages + shape.page_size);
  const TempDir dir;
  Backup backup;
  GuestRam ram(shape.pages, shape.page_size);
  CHECK_OK(backup->OpenSession(
      Backup::SessionFor(dir / "ram", ram.bytes(), shape.page_size)));
  const CancelSignal cancel;
  Proxy proxy(backup->port(), {.chunk_bytes = 20'000, .chunk_delay_us = chunk_delay_us,
                               .buffer_bytes = 8192});
  auto writer = EpochWriter::Connect("127.0.0.1", proxy.port(),
                                     {Token(7), shape.page_size, ram.bytes()}, strategy, 5'000,
                                     cancel);
  CHECK_OK(writer);
  ram.Scribble(random, shape.dirty);
  (void)ram.TakeDirty();
  CHECK_OK(SendRound(*writer.value(), ram, ram.All()));
  CHECK_EQ(writer.value()->counters().pages + writer.value()->counters().zero_pages, shape.pages);
  CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
  for (uint64_t epoch = 1; epoch <= kEpochs; epoch++) {
    if (epoch % 4 != 0) ram.Scribble(random, random() % (shape.dirty + 1));
    const Bytes device = RandomBytes(random, random() % 50'000);
    CHECK_OK(SendEpoch(*writer.value(), ram, ram.TakeDirty(), epoch, device));
    const ReceiverEvent applied = backup.Await(ReceiverEvent::Type::kApplied, epoch);
    CHECK_EQ(applied.epoch, epoch);
    CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
    const ReceiverEvent committed = backup.Await(ReceiverEvent::Type::kCommitted, epoch);
    const SendCounters& sent = writer.value()->counters();
    CHECK_EQ(committed.pages, sent.pages);
    CHECK_EQ(committed.zero_pages, sent.zero_pages);
    CHECK_EQ(committed.bytes, sent.bytes);
  }
  auto fenced = backup->Fence();
  CHECK_OK(fenced);
  CHECK_EQ(fenced.value().epoch, kEpochs);
  CHECK(!fenced.value().partial_epoch_dropped);
}

TEST("epochs of random pages arrive bit for bit, by every strategy") {
  for (const Strategy strategy : kStrategies) {
    RunEpochs({1500, 4096, 1200}, strategy, 0);
    RunEpochs({200, 4096, 60}, strategy, 100);
    RunEpochs({3, 2 << 20, 3}, strategy, 0);
  }
}

TEST("huge pages, which can be neither spliced nor sent by sendfile, on both sides") {
  constexpr uint64_t kPages = 4;
  const HugePages pages(2 * kPages);
  if (!pages.reserved()) {
    std::printf(" SKIPPED: no %d huge pages to be had", static_cast<int>(2 * kPages));
    return;
  }
  const TempDir dir;
  if (::mount("hugetlbfs", dir.path().c_str(), "hugetlbfs", 0, "pagesize=2M") != 0) {
    std::printf(" SKIPPED: mounting a hugetlbfs: %s", std::strerror(errno));
    return;
  }
  Random random(17);
  for (const Strategy strategy : kStrategies) {
    Backup backup;
    GuestRam ram(kPages, 2 << 20, MFD_HUGETLB);
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes(), 2 << 20)));
    const CancelSignal cancel;
    auto writer = EpochWriter::Connect("127.0.0.1", backup->port(),
                                       {Token(7), 2 << 20, ram.bytes()}, strategy, 5'000, cancel);
    CHECK_OK(writer);
    ram.Scribble(random, 3);
    CHECK_OK(SendRound(*writer.value(), ram, ram.All()));
    ram.Scribble(random, 2);
    CHECK_OK(SendEpoch(*writer.value(), ram, ram.TakeDirty(), 1, {}));
    CHECK_OK(backup->Fence());
    CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
    std::filesystem::remove(dir / "ram");
  }
  ::umount2(dir.path().c_str(), MNT_DETACH);
}

TEST("the apply time of the epoch before travels with the acknowledgement") {
  const TempDir dir;
  Backup backup;
  const GuestRam ram(16, 4096);
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
  const CancelSignal cancel;
  auto writer = EpochWriter::Connect("127.0.0.1", backup->port(), {Token(7), 4096, ram.bytes()},
                                     Strategy::kCopy, 5'000, cancel);
  CHECK_OK(writer);
  for (uint64_t epoch = 1; epoch <= 2; epoch++) {
    CHECK_OK(writer.value()->BeginEpoch(epoch));
    CHECK_OK(writer.value()->Device({}));
    CHECK_OK(writer.value()->Commit());
    auto ack = writer.value()->AwaitAck(epoch);
    CHECK_OK(ack);
    CHECK(epoch == 1 ? ack.value().previous_apply_us == -1 : ack.value().previous_apply_us >= 0);
    backup.Await(ReceiverEvent::Type::kApplied, epoch);
  }
}

TEST("connecting: refused, silent, cancelled") {
  const CancelSignal cancel;
  uint16_t closed_port;
  {
    Backup backup;
    closed_port = backup->port();
  }
  const EpochWriter::Hello hello{Token(7), 4096, 4096};
  CHECK_ERROR(
      EpochWriter::Connect("127.0.0.1", closed_port, hello, Strategy::kCopy, 1'000, cancel),
      ErrorCode::kConnect, "127.0.0.1");
  CHECK_ERROR(EpochWriter::Connect("no host", 1, hello, Strategy::kCopy, 1'000, cancel),
              ErrorCode::kConnect, "no host");
  // Takes connections and says nothing.
  uint16_t port = 0;
  const Descriptor listener = ListenLoopback(&port);
  CHECK_ERROR(EpochWriter::Connect("127.0.0.1", port, hello, Strategy::kCopy, 50, cancel),
              ErrorCode::kConnect, "silent");
  CancelSignal soon;
  std::thread canceller([&] {
    ::usleep(20'000);
    soon.Cancel();
  });
  CHECK_ERROR(EpochWriter::Connect("127.0.0.1", port, hello, Strategy::kCopy, 10'000, soon),
              ErrorCode::kCancelled, "cancelled");
  canceller.join();
}

// A backup of the test's own making: answers the handshake, then as told.
TEST("garbage, a wrong epoch and a lost peer instead of an acknowledgement") {
  const auto with_answer = [](const std::string& answer) {
    uint16_t port = 0;
    const Descriptor listener = ListenLoopback(&port);
    std::thread peer([&] {
      const Descriptor socket = AcceptOne(listener);
      std::array<std::byte, 4096> bytes;
      CHECK(::recv(socket.get(), bytes.data(), 88, MSG_WAITALL) == 88);
      const HeaderBytes head =
          EncodeHeader({.type = FrameType::kHelloOk, .payload_bytes = HelloOkBody::kBytes});
      const auto body = EncodeHelloOk({});
      CHECK(::send(socket.get(), head.data(), head.size(), MSG_NOSIGNAL) == 40);
      CHECK(::send(socket.get(), body.data(), body.size(), MSG_NOSIGNAL) == 8);
      // BEGIN, DEVICE, COMMIT
      CHECK(::recv(socket.get(), bytes.data(), 3 * 40 + 24, MSG_WAITALL) == 3 * 40 + 24);
      CHECK(::send(socket.get(), answer.data(), answer.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(answer.size()));
    });
    const CancelSignal cancel;
    auto writer = EpochWriter::Connect("127.0.0.1", port, {Token(7), 4096, 4096},
                                       Strategy::kCopy, 5'000, cancel);
    CHECK_OK(writer);
    CHECK_OK(writer.value()->BeginEpoch(5));
    CHECK_OK(writer.value()->Device({}));
    CHECK_OK(writer.value()->Commit());
    auto ack = writer.value()->AwaitAck(5);
    peer.join();
    return ack;
  };
  const auto text = [](const HeaderBytes& head, size_t zeros) {
    return std::string(reinterpret_cast<const char*>(head.data()), head.size()) +
           std::string(zeros, '\0');
  };
  CHECK_OK(with_answer(
      text(EncodeHeader({.type = FrameType::kAck, .epoch = 5, .payload_bytes = 8}), 8)));
  CHECK_ERROR(with_answer(
                  text(EncodeHeader({.type = FrameType::kAck, .epoch = 4, .payload_bytes = 8}), 8)),
              ErrorCode::kProtocol, "epoch 4, not 5");
  CHECK_ERROR(with_answer(text(EncodeHeader({.type = FrameType::kRoundOk}), 0)),
              ErrorCode::kProtocol, "ROUND_OK");
  CHECK_ERROR(with_answer(std::string(200, 'x')), ErrorCode::kProtocol, "magic");
  CHECK_ERROR(with_answer(""), ErrorCode::kPeerLost, "closed");
  CHECK_ERROR(with_answer("short"), ErrorCode::kPeerLost, "closed");
  CHECK_ERROR(with_answer(EncodeErrorFrame(WireError::kFenced, "taken over")), ErrorCode::kFenced,
              "taken over");
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
