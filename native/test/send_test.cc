// EpochWriter with every strategy against a Receiver. The strategies by
// themselves: sender_test.cc.

#include <poll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>

#include <filesystem>

#include "base/clock.h"
#include "base/host_clock.h"
#include "send/page_sender.h"
#include "test/lab.h"
#include "wire/frame.h"

namespace holdfast::test {
namespace {

constexpr uint64_t kEpochs = 8;

struct Shape {
  uint64_t pages;
  uint32_t page_size;
  uint64_t dirty;
};

void RunEpochs(const Shape& shape, Strategy strategy, int chunk_delay_us, unsigned streams = 1) {
  Random random(shape.pages + shape.page_size);
  const TempDir dir;
  Backup backup;
  GuestRam ram(shape.pages, shape.page_size);
  CHECK_OK(backup->OpenSession(
      Backup::SessionFor(dir / "ram", ram.bytes(), shape.page_size)));
  const CancelSignal cancel;
  Proxy proxy(backup->port(), {.chunk_bytes = 20'000, .chunk_delay_us = chunk_delay_us,
                               .buffer_bytes = 8192});
  auto writer = ConnectWriter(proxy.port(), {Token(7), shape.page_size, ram.bytes()}, strategy,
                              cancel, streams);
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
    const SendCounters sent = writer.value()->counters();
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
  for (const Strategy strategy : kAllStrategies) {
    RunEpochs({1500, 4096, 1200}, strategy, 0);
    RunEpochs({200, 4096, 60}, strategy, 100);
    RunEpochs({3000, 4096, 2400}, strategy, 0, 3);
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
  for (const Strategy strategy : kAllStrategies) {
    Backup backup;
    GuestRam ram(kPages, 2 << 20, MFD_HUGETLB);
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes(), 2 << 20)));
    const CancelSignal cancel;
    auto writer = ConnectWriter(backup->port(), {Token(7), 2 << 20, ram.bytes()}, strategy, cancel);
    CHECK_OK(writer);
    ram.Scribble(random, 3);
    CHECK_OK(SendRound(*writer.value(), ram, ram.All()));
    ram.Scribble(random, 2);
    CHECK_OK(SendEpoch(*writer.value(), ram, ram.TakeDirty(), 1, {}));
    // From the mapping where the file can't be sent from: by reference all the same.
    const bool by_reference = strategy == Strategy::kSendfile || strategy == Strategy::kSplice ||
                              strategy == Strategy::kVmsplice;
    if (by_reference) CHECK_EQ(writer.value()->counters().copied_bytes, 0u);
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
  auto writer = ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()}, Strategy::kCopy,
                              cancel);
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
      EpochWriter::Connect("127.0.0.1", closed_port, hello, 1, 1'000, cancel),
      ErrorCode::kConnect, "127.0.0.1");
  CHECK_ERROR(EpochWriter::Connect("no host", 1, hello, 1, 1'000, cancel),
              ErrorCode::kConnect, "no host");
  // Takes connections and says nothing.
  uint16_t port = 0;
  const Descriptor listener = ListenLoopback(&port);
  CHECK_ERROR(EpochWriter::Connect("127.0.0.1", port, hello, 1, 50, cancel),
              ErrorCode::kConnect, "silent");
  CancelSignal soon;
  std::thread canceller([&] {
    ::usleep(20'000);
    soon.Cancel();
  });
  CHECK_ERROR(EpochWriter::Connect("127.0.0.1", port, hello, 1, 10'000, soon),
              ErrorCode::kCancelled, "cancelled");
  canceller.join();
}

constexpr ssize_t kHelloFrameBytes = kFrameHeaderBytes + HelloBody::kBytes;

// What a backup of the tests' own making says to a HELLO.
void GreetBack(const Descriptor& socket) {
  std::array<std::byte, kHelloFrameBytes> hello;
  CHECK(::recv(socket.get(), hello.data(), hello.size(), MSG_WAITALL) == kHelloFrameBytes);
  const HeaderBytes head =
      EncodeHeader({.type = FrameType::kHelloOk, .payload_bytes = HelloOkBody::kBytes});
  const auto body = EncodeHelloOk({});
  CHECK(::send(socket.get(), head.data(), head.size(), MSG_NOSIGNAL) == 40);
  CHECK(::send(socket.get(), body.data(), body.size(), MSG_NOSIGNAL) ==
        static_cast<ssize_t>(body.size()));
}

void Say(const Descriptor& socket, const std::string& frame) {
  CHECK(::send(socket.get(), frame.data(), frame.size(), MSG_NOSIGNAL) ==
        static_cast<ssize_t>(frame.size()));
}

std::string FrameText(const HeaderBytes& head, size_t zeros) {
  return std::string(reinterpret_cast<const char*>(head.data()), head.size()) +
         std::string(zeros, '\0');
}

// Answers the handshake, then as told.
TEST("garbage, a wrong epoch and a lost peer instead of an acknowledgement") {
  const auto with_answer = [](const std::string& answer) {
    uint16_t port = 0;
    const Descriptor listener = ListenLoopback(&port);
    std::thread peer([&] {
      const Descriptor socket = AcceptOne(listener);
      GreetBack(socket);
      std::array<std::byte, 3 * kFrameHeaderBytes + PartBody::kBytes> epoch;  // BEGIN, DEVICE, COMMIT
      CHECK_EQ(::recv(socket.get(), epoch.data(), epoch.size(), MSG_WAITALL), ssize_t{epoch.size()});
      const PartBody commit = DecodePart(std::span(epoch).last<PartBody::kBytes>());
      CHECK(commit.age_ns >= 5'000'000 && commit.age_ns < 60'000'000'000);
      Say(socket, answer);
    });
    const CancelSignal cancel;
    auto writer = ConnectWriter(port, {Token(7), 4096, 4096}, Strategy::kCopy, cancel);
    CHECK_OK(writer);
    CHECK_OK(writer.value()->BeginEpoch(5));
    CHECK_OK(writer.value()->Device({}));
    CHECK_OK(writer.value()->Commit(HostClock::Now().ns - 5'000'000));
    auto ack = writer.value()->AwaitAck(5);
    peer.join();
    return ack;
  };
  CHECK_OK(with_answer(
      FrameText(EncodeHeader({.type = FrameType::kAck, .epoch = 5, .payload_bytes = 8}), 8)));
  CHECK_ERROR(with_answer(
                  FrameText(EncodeHeader({.type = FrameType::kAck, .epoch = 4, .payload_bytes = 8}), 8)),
              ErrorCode::kProtocol, "epoch 4, not 5");
  CHECK_ERROR(with_answer(FrameText(EncodeHeader({.type = FrameType::kRoundOk}), 0)),
              ErrorCode::kProtocol, "ROUND_OK");
  CHECK_ERROR(with_answer(std::string(200, 'x')), ErrorCode::kProtocol, "magic");
  CHECK_ERROR(with_answer(""), ErrorCode::kPeerLost, "closed");
  CHECK_ERROR(with_answer("short"), ErrorCode::kPeerLost, "closed");
  CHECK_ERROR(with_answer(EncodeErrorFrame(WireError::kFenced, "taken over")), ErrorCode::kFenced,
              "taken over");
}

// Stream 0 stays open and silent meanwhile: a sender that listened there alone
// would wait for as long as a peer may be silent.
TEST("what happens on another stream ends the wait for the acknowledgement") {
  enum class Other { kReset, kClosed, kRefuses, kClosedAfterAnswer };
  const auto with = [](Other other) {
    uint16_t port = 0;
    const Descriptor listener = ListenLoopback(&port);
    CancelSignal over;
    std::thread peer([&] {
      const Descriptor first = AcceptOne(listener);
      GreetBack(first);
      Descriptor second = AcceptOne(listener);
      GreetBack(second);
      std::array<std::byte, 2 * kFrameHeaderBytes + PartBody::kBytes> part;  // BEGIN, END_PART
      CHECK_EQ(::recv(second.get(), part.data(), part.size(), MSG_WAITALL), ssize_t{part.size()});
      if (other == Other::kRefuses) Say(second, EncodeErrorFrame(WireError::kFenced, "taken over"));
      if (other == Other::kReset) {
        const linger abort{.l_onoff = 1, .l_linger = 0};
        CHECK(::setsockopt(second.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof abort) == 0);
      }
      second.Close();
      if (other == Other::kClosedAfterAnswer) {
        Say(first, FrameText(
                       EncodeHeader({.type = FrameType::kAck, .epoch = 1, .payload_bytes = 8}), 8));
      }
      pollfd until_over{over.fd(), POLLIN, 0};
      ::poll(&until_over, 1, kDeadlineMs);
    });
    const CancelSignal cancel;
    auto writer = ConnectWriter(port, {Token(7), 4096, 4096}, Strategy::kCopy, cancel, 2);
    CHECK_OK(writer);
    CHECK_OK(writer.value()->BeginEpoch(1));
    CHECK_OK(writer.value()->Device({}));
    CHECK_OK(writer.value()->Commit());
    const double started_ms = MonotonicMs();
    auto ack = writer.value()->AwaitAck(1);
    CHECK(MonotonicMs() - started_ms < kPeerSilenceMsMax);
    over.Cancel();
    peer.join();
    return ack;
  };
  const auto reset = with(Other::kReset);
  CHECK_ERROR(reset, ErrorCode::kPeerLost, "peer lost");
  CHECK_EQ(reset.error().sys_errno, ECONNRESET);
  CHECK_ERROR(with(Other::kClosed), ErrorCode::kPeerLost, "closed");
  CHECK_ERROR(with(Other::kRefuses), ErrorCode::kFenced, "taken over");
  CHECK_OK(with(Other::kClosedAfterAnswer));
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
