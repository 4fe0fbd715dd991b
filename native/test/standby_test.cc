// What a standby is given ahead of a takeover, and what the takeover makes of it.

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/clock.h"
#include "base/thread.h"
#include "receive/standby_stream.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

constexpr uint64_t kPages = 16;

Bytes Joined(const Bytes& a, const Bytes& b) {
  Bytes both = a;
  both.insert(both.end(), b.begin(), b.end());
  return both;
}

StandbyStream::Prefix Shared(size_t bytes) {
  return std::make_shared<const Bytes>(bytes, std::byte{7});
}

// A standby that reads only when it is told to.
class Listener {
 public:
  explicit Listener(const std::string& path)
      : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    CHECK(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    CHECK(::listen(socket_.get(), 1) == 0);
  }
  Descriptor Accept() { return AcceptOne(socket_); }

 private:
  Descriptor socket_;
};

bool Readable(int fd, int timeout_ms) {
  pollfd polled{fd, POLLIN, 0};
  return ::poll(&polled, 1, timeout_ms) > 0;
}

Bytes ReadExactly(int fd, size_t count) {
  Bytes bytes(count);
  for (size_t at = 0; at < count;) {
    const ssize_t got = ::recv(fd, bytes.data() + at, count - at, 0);
    CHECK(got > 0);
    at += static_cast<size_t>(got);
  }
  return bytes;
}

bool AtEnd(int fd) {
  std::byte byte;
  return ::recv(fd, &byte, 1, 0) == 0;
}

// A backup with a session and a primary that sends to it.
struct Side {
  Side() : ram(kPages, 4096) {
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
    Connect();
  }

  void Connect() {
    auto connected =
        ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()}, Strategy::kCopy, cancel);
    CHECK_OK(connected);
    writer = std::move(connected).value();
  }
  void Reconnect() {
    writer.reset();
    backup.Await(ReceiverEvent::Type::kDisconnected);
    Connect();
  }

  // Which prefix the checkpoint has then, as the event says.
  uint64_t Commit(const Bytes* prefix = nullptr) {
    epoch++;
    device = RandomBytes(random, 3000 + epoch);
    CHECK_OK(SendEpoch(*writer, ram, ram.All(), epoch, device, prefix));
    return backup.Await(ReceiverEvent::Type::kCommitted, epoch).prefix;
  }
  uint64_t Feed(StandbyStream& standby) {
    auto fed = backup->Feed(standby);
    CHECK_OK(fed);
    return fed.value();
  }
  void Fence() { CHECK_OK(backup->Fence()); }

  const TempDir dir;
  const CancelSignal cancel;
  Random random{11};
  GuestRam ram;
  Backup backup;
  std::unique_ptr<EpochWriter> writer;
  uint64_t epoch = 0;
  Bytes device;
};

}  // namespace

TEST("what is known is given ahead, and the takeover writes the rest over the same connection") {
  Side side;
  StandbyStream standby(side.dir / "standby");
  CHECK_EQ(side.Feed(standby), uint64_t{0});  // nothing is known: nobody is connected to
  const Bytes prefix = RandomBytes(side.random, 400'000);
  CHECK_EQ(side.Commit(&prefix), uint64_t{1});
  Listener listener(standby.path());
  std::thread feeding([&] { CHECK_EQ(side.Feed(standby), uint64_t{1}); });
  const Descriptor qemu = listener.Accept();
  CHECK(Same(ReadExactly(qemu.get(), prefix.size()), prefix));
  feeding.join();
  CHECK_EQ(side.Commit(), uint64_t{1});
  CHECK_EQ(side.Commit(&prefix), uint64_t{1});  // the guest's reset left it as it was
  side.Fence();
  CHECK(!Readable(qemu.get(), 0));  // neither more of it, nor its end
  auto written = side.backup->WriteState(standby);
  CHECK_OK(written);
  CHECK_EQ(written.value().bytes, uint64_t{side.device.size()});
  CHECK(Same(ReadExactly(qemu.get(), side.device.size()), side.device));
  CHECK(AtEnd(qemu.get()));
  CHECK_ERROR(side.backup->WriteState(standby), ErrorCode::kStateLoad, "given one before");
  CHECK_ERROR(side.backup->Feed(standby), ErrorCode::kStateLoad, "given one before");
}

TEST("what came in a round is given before there is a checkpoint, and the epoch has its name") {
  Side side;
  const Bytes prefix = RandomBytes(side.random, 300'000);
  const auto send_base = [&] {
    CHECK_OK(side.writer->BeginRound());
    CHECK_OK(side.writer->PrefixAhead(prefix));
    CHECK_OK(side.writer->EndRound());
  };
  send_base();
  CHECK_EQ(side.backup.Await(ReceiverEvent::Type::kPrefix).prefix, uint64_t{1});
  Standby qemu(side.dir / "standby");
  StandbyStream standby(side.dir / "standby");
  CHECK_EQ(side.Feed(standby), uint64_t{1});
  // The primary connects anew: it is sent once more, and is the same.
  side.Reconnect();
  send_base();
  CHECK_EQ(side.backup.Await(ReceiverEvent::Type::kPrefix, 2).prefix, uint64_t{1});
  CHECK_EQ(side.Commit(&prefix), uint64_t{1});
  CHECK(side.writer->counters().bytes < prefix.size());
  side.Fence();
  auto written = side.backup->WriteState(standby);
  CHECK_OK(written);
  CHECK_EQ(written.value().bytes, uint64_t{side.device.size()});
  CHECK(Same(qemu.Received(), Joined(prefix, side.device)));
}

TEST("what came in a round counts for nothing by itself: epochs have another prefix, or none") {
  Side side;
  const Bytes ahead = RandomBytes(side.random, 5000);
  const Bytes prefix = RandomBytes(side.random, 5000);
  CHECK_OK(side.writer->BeginRound());
  CHECK_OK(side.writer->PrefixAhead(ahead));
  CHECK_OK(side.writer->EndRound());
  CHECK_EQ(side.Commit(), uint64_t{0});
  StandbyStream standby(side.dir / "standby");
  CHECK_EQ(side.Feed(standby), uint64_t{0});
  CHECK_EQ(side.Commit(&prefix), uint64_t{2});
  side.Reconnect();
  CHECK_EQ(side.Commit(&ahead), uint64_t{1});  // known, but by its bytes on a new connection
  CHECK(side.writer->counters().bytes > ahead.size());
  side.Fence();
  Standby qemu(side.dir / "standby");
  CHECK_OK(side.backup->WriteState(standby));
  CHECK(Same(qemu.Received(), Joined(ahead, side.device)));
}

TEST("a standby that has another prefix is refused; the next one gets all") {
  Side side;
  const Bytes first = RandomBytes(side.random, 5000);
  const Bytes second = RandomBytes(side.random, 5000);
  side.Commit(&first);
  Listener listener(side.dir / "old");
  StandbyStream old(side.dir / "old");
  CHECK_EQ(side.Feed(old), uint64_t{1});
  const Descriptor qemu = listener.Accept();
  CHECK_EQ(side.Commit(&second), uint64_t{2});
  side.Fence();
  CHECK_ERROR(side.backup->WriteState(old), ErrorCode::kStateLoad, "prefix of another checkpoint");
  CHECK(Same(ReadExactly(qemu.get(), first.size()), first));
  CHECK(!Readable(qemu.get(), 0));  // nothing of the other checkpoint came
  Standby fresh(side.dir / "fresh");
  CHECK_OK(side.backup->WriteState(side.dir / "fresh"));
  CHECK(Same(fresh.Received(), Joined(second, side.device)));
}

TEST("back to the first prefix: what counts is what was written, not when") {
  Side side;
  const Bytes first = RandomBytes(side.random, 5000);
  const Bytes second = RandomBytes(side.random, 5000);
  side.Commit(&first);
  Standby qemu(side.dir / "standby");
  StandbyStream standby(side.dir / "standby");
  CHECK_EQ(side.Feed(standby), uint64_t{1});
  CHECK_EQ(side.Commit(&second), uint64_t{2});
  CHECK_EQ(side.Commit(&first), uint64_t{3});
  side.Fence();
  CHECK_OK(side.backup->WriteState(standby));
  CHECK(Same(qemu.Received(), Joined(first, side.device)));
}

TEST("one that reads slowly keeps neither epochs nor the fence waiting; the takeover waits its turn") {
  Side side;
  const Bytes prefix = RandomBytes(side.random, 1 << 20);
  side.Commit(&prefix);
  Listener listener(side.dir / "standby");
  StandbyStream standby(side.dir / "standby");
  std::thread feeding([&] { CHECK_EQ(side.Feed(standby), uint64_t{1}); });
  const Descriptor qemu = listener.Accept();
  CHECK(Readable(qemu.get(), kDeadlineMs));  // under way, and more than fits into the socket
  side.Commit();
  side.Fence();
  std::thread taking_over([&] { CHECK_OK(side.backup->WriteState(standby)); });
  CHECK(Same(ReadExactly(qemu.get(), prefix.size()), prefix));
  CHECK(Same(ReadExactly(qemu.get(), side.device.size()), side.device));
  CHECK(AtEnd(qemu.get()));
  feeding.join();
  taking_over.join();
}

TEST("cancelled: who writes gives up at once, and who waits for it") {
  Side side;
  const Bytes prefix = RandomBytes(side.random, 1 << 20);
  side.Commit(&prefix);
  side.Fence();
  const double started_ms = MonotonicMs();
  {
    Listener listener(side.dir / "standby");
    StandbyStream standby(side.dir / "standby");
    std::thread feeding(
        [&] { CHECK_ERROR(side.backup->Feed(standby), ErrorCode::kCancelled, "given up"); });
    const Descriptor qemu = listener.Accept();
    CHECK(Readable(qemu.get(), kDeadlineMs));
    std::thread taking_over(
        [&] { CHECK_ERROR(side.backup->WriteState(standby), ErrorCode::kStateLoad, "a part"); });
    standby.Cancel();
    feeding.join();
    taking_over.join();
  }
  StandbyStream nobody(side.dir / "nobody");
  std::thread connecting(
      [&] { CHECK_ERROR(side.backup->Feed(nobody), ErrorCode::kCancelled, "given up"); });
  nobody.Cancel();
  connecting.join();
  CHECK(MonotonicMs() - started_ms < 4'000);  // of the 5 s that a standby may be silent
}

TEST("a standby that ends while it is given the prefix, or has it") {
  Side side;
  const Bytes prefix = RandomBytes(side.random, 1 << 20);
  side.Commit(&prefix);
  side.Fence();
  StandbyStream half(side.dir / "half");
  {
    Listener listener(half.path());
    std::thread feeding([&] { CHECK_ERROR(side.backup->Feed(half), ErrorCode::kStateLoad, "half"); });
    Descriptor qemu = listener.Accept();
    CHECK(Readable(qemu.get(), kDeadlineMs));
    qemu.Close();
    feeding.join();
  }
  CHECK_ERROR(side.backup->WriteState(half), ErrorCode::kStateLoad, "only a part");
  StandbyStream whole(side.dir / "whole");
  {
    Standby qemu(whole.path());
    CHECK_OK(whole.Begin(Shared(0)));
    whole.Cancel();
    CHECK_ERROR(whole.Finish(Shared(0), side.device), ErrorCode::kCancelled, "given up");
    CHECK_EQ(qemu.Received().size(), size_t{0});
  }
  Standby next(side.dir / "next");
  CHECK_OK(side.backup->WriteState(side.dir / "next"));
  CHECK(Same(next.Received(), Joined(prefix, side.device)));
}

TEST("without a session there is nothing to give; nothing is left open") {
  const int before = OpenDescriptors();
  {
    Side side;
    CHECK_OK(side.backup->CloseSession());
    StandbyStream standby(side.dir / "standby");
    CHECK_ERROR(side.backup->Feed(standby), ErrorCode::kStateLoad, "no session");
    Listener listener(standby.path());
    CHECK_OK(standby.Begin(Shared(100)));
    CHECK_ERROR(standby.Finish(nullptr, {}), ErrorCode::kStateLoad, "another checkpoint");
  }
  CHECK_EQ(OpenDescriptors(), before);
  CHECK_EQ(g_descriptors_open.load(), 0);
}

}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
