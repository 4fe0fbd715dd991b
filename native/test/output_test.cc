// The packet gate: the ring of frames, what is held and released, and the
// relay's thread between sockets that this test holds the other ends of.

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <deque>
#include <numeric>

#include "base/unix_socket.h"
#include "output/relay.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

// A frame that says its number, padded to a size.
Bytes Frame(uint32_t number, uint32_t bytes) {
  Bytes frame(kPacketLengthBytes + bytes);
  for (size_t i = 0; i < 4; ++i) frame[i] = static_cast<std::byte>(bytes >> (24 - 8 * i));
  for (size_t i = 0; i < bytes; ++i) {
    frame[4 + i] = static_cast<std::byte>(i < 4 ? number >> (8 * i) : number + i);
  }
  return frame;
}

void Append(Bytes& to, const Bytes& bytes) { to.insert(to.end(), bytes.begin(), bytes.end()); }

Bytes Copy(const RingParts& parts) {
  Bytes bytes;
  for (int i = 0; i < parts.count; ++i) {
    const auto* const base = static_cast<const std::byte*>(parts.parts[i].iov_base);
    bytes.insert(bytes.end(), base, base + parts.parts[i].iov_len);
  }
  return bytes;
}

void CopyTo(const RingParts& parts, const std::byte* bytes) {
  for (int i = 0; i < parts.count; ++i) {
    std::memcpy(parts.parts[i].iov_base, bytes, parts.parts[i].iov_len);
    bytes += parts.parts[i].iov_len;
  }
}

// Moves as much of `bytes` into the frames as they take; returns how much that was.
size_t Feed(HeldFrames& held, std::span<const std::byte> bytes, bool past_bound = false) {
  RingParts room = held.Room(past_bound);
  if (room.bytes > bytes.size()) room = held.ring().Room(bytes.size());
  CopyTo(room, bytes.data());
  CHECK(held.Received(room.bytes));
  return room.bytes;
}

Bytes Released(HeldFrames& held) {
  const uint64_t bytes = held.released().position - held.ring().head().position;
  const Bytes content = Copy(held.ring().Upto(held.released().position));
  held.ring().Consume(bytes);
  return content;
}

HeldFrames Make(uint64_t bytes_max = 1 << 20, bool hold = true) {
  auto held = HeldFrames::Create(bytes_max, hold);
  CHECK_OK(held);
  return std::move(held).value();
}

TEST("ring: frames cut anywhere, around its end many times, come out as they went in") {
  Random random(31);
  auto made = FrameRing::Create(kPacketLengthBytes + kPacketBytesMax);
  CHECK_OK(made);
  FrameRing ring = std::move(made).value();
  Bytes sent, received, waiting;
  uint64_t frames_in = 0, frames_out = 0;
  for (uint32_t number = 0; number < 4000; ++number) {
    const auto bytes = static_cast<uint32_t>(random() % 20 == 0 ? 1 + random() % 60000
                                                                 : 1 + random() % 200);
    Append(waiting, Frame(number, bytes));
    frames_in++;
    while (!waiting.empty()) {
      const RingParts room = ring.Room(std::min<uint64_t>(waiting.size(), 1 + random() % 3000));
      CopyTo(room, waiting.data());
      CHECK(ring.Append(room.bytes));
      sent.insert(sent.end(), waiting.begin(), waiting.begin() + static_cast<long>(room.bytes));
      waiting.erase(waiting.begin(), waiting.begin() + static_cast<long>(room.bytes));
      const uint64_t whole = ring.whole().position - ring.head().position;
      const uint64_t taken = ring.room() < 4096 ? whole : std::min<uint64_t>(whole, random() % 2000);
      Append(received, Copy(ring.Upto(ring.head().position + taken)));
      frames_out += ring.Consume(taken);
    }
  }
  const uint64_t rest = ring.whole().position - ring.head().position;
  Append(received, Copy(ring.Upto(ring.whole().position)));
  frames_out += ring.Consume(rest);
  CHECK(Same(sent, received));
  CHECK_EQ(frames_out, frames_in);
  CHECK_EQ(ring.used(), 0);
}

TEST("ring: every cut of two frames") {
  Bytes stream = Frame(1, 60);
  Append(stream, Frame(2, 1514));
  for (size_t cut = 0; cut <= stream.size(); ++cut) {
    HeldFrames held = Make();
    CHECK_EQ(Feed(held, std::span(stream).first(cut)), cut);
    CHECK_EQ(held.frames(), cut < 64 ? 0u : cut < stream.size() ? 1u : 2u);
    CHECK_EQ(held.Boundary(), held.frames());
    Feed(held, std::span(stream).subspan(cut));
    held.Release();
    // A frame of which only a part had come belongs to the next epoch.
    CHECK_EQ(Released(held).size(), cut < 64 ? 0u : cut < stream.size() ? 64u : stream.size());
  }
}

TEST("ring: lengths that QEMU never sends") {
  for (const uint32_t length : {0u, kPacketBytesMax + 1, 0x47455420u}) {
    HeldFrames held = Make(1 << 20, false);
    Bytes stream = Frame(1, 60);
    Append(stream, Frame(2, length > 1000 ? 1000 : length));
    for (size_t i = 0; i < 4; ++i) stream[64 + i] = static_cast<std::byte>(length >> (24 - 8 * i));
    const RingParts room = held.ring().Room(stream.size());
    CopyTo(room, stream.data());
    CHECK(!held.Received(room.bytes));
    CHECK_EQ(held.Discard(), 0u);  // nothing was held
    CHECK_EQ(Released(held).size(), 64u);  // the frame before it is as good as ever
  }
  HeldFrames held = Make();
  CHECK_EQ(Feed(held, Frame(1, kPacketBytesMax)), kPacketLengthBytes + kPacketBytesMax);
  CHECK_EQ(held.frames(), 1u);
}

TEST("held: an epoch leaves with its release, in order, and not before") {
  HeldFrames held = Make();
  Feed(held, Frame(1, 100));
  CHECK(held.TakeOutput());
  Feed(held, Frame(2, 100));
  CHECK(!held.TakeOutput());  // once an epoch
  CHECK_EQ(held.Release(), 0u);  // before any boundary
  CHECK(Released(held).empty());
  CHECK_EQ(held.Boundary(), 2u);
  CHECK_EQ(held.boundary_frames(), 2u);
  CHECK(!held.TakeOutput());
  Feed(held, Frame(3, 100));
  CHECK(held.TakeOutput());
  CHECK_EQ(held.Boundary(), 1u);  // the epoch before was given up: both leave with this one
  Feed(held, Frame(4, 100));
  CHECK_EQ(held.Release(), 3u);
  Bytes expected = Frame(1, 100);
  Append(expected, Frame(2, 100));
  Append(expected, Frame(3, 100));
  CHECK(Same(Released(held), expected));
  CHECK_EQ(held.Release(), 0u);
  CHECK_EQ(held.Open(), 1u);
  Feed(held, Frame(5, 100));  // passes
  expected = Frame(4, 100);
  Append(expected, Frame(5, 100));
  CHECK(Same(Released(held), expected));
  CHECK(!held.TakeOutput());
  CHECK_EQ(held.Hold(), 0u);
  Feed(held, Frame(6, 100));
  CHECK(Released(held).empty());
  CHECK(held.TakeOutput());
}

TEST("held: a QEMU that ends takes along what no checkpoint explains, and nothing else") {
  HeldFrames held = Make();
  Feed(held, Frame(1, 100));
  held.Boundary();
  held.Release();
  Feed(held, Frame(2, 100));
  held.Boundary();
  Feed(held, Frame(3, 100));
  Feed(held, std::span<const std::byte>(Frame(4, 100)).first(50));
  CHECK_EQ(held.Discard(), 2u);
  CHECK_EQ(held.Release(), 0u);
  Feed(held, Frame(5, 100));  // of the next QEMU
  CHECK(Same(Released(held), Frame(1, 100)));
  held.Boundary();
  held.Release();
  CHECK(Same(Released(held), Frame(5, 100)));
}

TEST("held: the bound, and how far a boundary goes past it") {
  HeldFrames held = Make(kHeldBytesMaxMin);
  Bytes flood;
  for (uint32_t i = 0; i < 20000; ++i) Append(flood, Frame(i, 1000));
  CHECK_EQ(Feed(held, flood), kHeldBytesMaxMin);
  CHECK(held.full());
  size_t fed = kHeldBytesMaxMin;
  held.Prepare();
  CHECK(!held.full());
  held.Boundary();
  CHECK(held.full());
  fed += Feed(held, std::span(flood).subspan(fed), true);
  CHECK_EQ(fed, kHeldBytesMaxMin + kOvershootBytesMax);
  CHECK_EQ(held.Room(true).bytes, 0u);
  CHECK_EQ(held.bytes_peak(), kHeldBytesMaxMin + kOvershootBytesMax);
  held.Boundary();
  held.Release();
  const Bytes released = Released(held);
  CHECK(Same(released, Bytes(flood.begin(), flood.begin() + static_cast<long>(released.size()))));
  CHECK(!held.full());
  CHECK_ERROR(HeldFrames::Create(kHeldBytesMaxMin - 1, true), ErrorCode::kLimit, "the least is");
}

// The relay's neighbours: QEMU, the network and the daemon, each a socket here.
class Lab {
 public:
  explicit Lab(uint64_t held_bytes_max = 1 << 20, bool hold = true, int qemu_socket_bytes = 0) {
    qemu_listener_ = Listener("qemu");
    target_listener_ = Listener("target");
    Relay::Options options;
    options.qemu_socket = dir_ / "qemu";
    options.target = MakeStreamTarget(dir_ / "target");
    options.control_socket = dir_ / "control";
    options.held_bytes_max = held_bytes_max;
    options.qemu_socket_bytes = qemu_socket_bytes;
    options.hold = hold;
    options.on_event = [this](const RelayEvent& event) {
      const std::lock_guard lock(mutex_);
      events_.push_back(event);
    };
    auto relay = Relay::Start(std::move(options));
    CHECK_OK(relay);
    relay_ = std::move(relay).value();
    target = Accept(target_listener_);
    qemu = Accept(qemu_listener_);
  }

  Relay& relay() { return *relay_; }
  void EndRelay() { relay_.reset(); }
  void AcceptQemu() { qemu = Accept(qemu_listener_); }
  void AcceptTarget() { target = Accept(target_listener_); }
  std::string path(const std::string& name) const { return dir_ / name; }

  size_t Count(RelayEvent::Type type) {
    const std::lock_guard lock(mutex_);
    return static_cast<size_t>(std::count_if(
        events_.begin(), events_.end(), [&](const auto& event) { return event.type == type; }));
  }

  // Waits until the relay's statistics are so.
  template <typename Condition>
  RelayStats Until(Condition condition) {
    const double deadline_ms = MonotonicMs() + kDeadlineMs;
    for (;;) {
      const RelayStats stats = relay_->Stats();
      if (condition(stats)) return stats;
      CHECK(MonotonicMs() < deadline_ms);
      ::usleep(500);
    }
  }

  Descriptor qemu;
  Descriptor target;

 private:
  Descriptor Listener(const char* name) {
    auto listener = ListenUnix(dir_ / name);
    CHECK_OK(listener);
    return std::move(listener).value();
  }
  Descriptor Accept(const Descriptor& listener) {
    pollfd waiting{listener.get(), POLLIN, 0};
    CHECK(::poll(&waiting, 1, kDeadlineMs) == 1);
    return Descriptor(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }

  TempDir dir_;
  Descriptor qemu_listener_;
  Descriptor target_listener_;
  std::mutex mutex_;
  std::vector<RelayEvent> events_;
  std::unique_ptr<Relay> relay_;
};

void WriteAll(const Descriptor& to, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(to.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    CHECK(sent > 0);
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
}

// As much as fits, without waiting; like QEMU, whole frames or parts of them.
size_t WriteNow(const Descriptor& to, std::span<const std::byte> bytes) {
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t sent = ::send(to.get(), bytes.data() + written,
                                std::min<size_t>(bytes.size() - written, 2000), MSG_DONTWAIT);
    if (sent <= 0) break;
    written += static_cast<size_t>(sent);
  }
  return written;
}

Bytes ReadExactly(const Descriptor& from, size_t count) {
  Bytes bytes(count);
  size_t have = 0;
  while (have < count) {
    pollfd waiting{from.get(), POLLIN, 0};
    CHECK(::poll(&waiting, 1, kDeadlineMs) == 1);
    const ssize_t got = ::recv(from.get(), bytes.data() + have, count - have, 0);
    CHECK(got > 0);
    have += static_cast<size_t>(got);
  }
  return bytes;
}

bool Silent(const Descriptor& from) {
  pollfd waiting{from.get(), POLLIN, 0};
  return ::poll(&waiting, 1, 20) == 0;
}

class Controller {
 public:
  explicit Controller(const Lab& lab) {
    auto socket = ConnectUnixNow(lab.path("control"));
    CHECK_OK(socket);
    socket_ = std::move(socket).value();
    hello_ = Next();
    CHECK_EQ(hello_.type, static_cast<uint32_t>(ControlType::kHello));
  }
  const ControlMessage& hello() const { return hello_; }

  void Send(ControlType type) {
    const ControlMessage request{.type = static_cast<uint32_t>(type)};
    WriteAll(socket_, std::as_bytes(std::span(&request, 1)));
  }
  // The frames that the answer names; OUTPUT events on the way are counted.
  uint64_t Ask(ControlType type) {
    Send(type);
    return Answer(type);
  }
  uint64_t Answer(ControlType type) {
    for (;;) {
      const ControlMessage message = Next();
      if (message.type == static_cast<uint32_t>(ControlType::kOutput)) {
        outputs++;
        continue;
      }
      CHECK_EQ(message.type, static_cast<uint32_t>(type) | kControlAnswer);
      return message.value;
    }
  }
  RelayStats Stats() {
    Ask(ControlType::kStats);
    RelayStats stats;
    const Bytes bytes = ReadExactly(socket_, sizeof stats);
    std::memcpy(&stats, bytes.data(), sizeof stats);
    return stats;
  }
  void AwaitOutput() {
    CHECK_EQ(Next().type, static_cast<uint32_t>(ControlType::kOutput));
    outputs++;
  }
  bool Ended() {
    pollfd waiting{socket_.get(), POLLIN, 0};
    CHECK(::poll(&waiting, 1, kDeadlineMs) == 1);
    std::byte byte;
    return ::recv(socket_.get(), &byte, 1, 0) <= 0;
  }
  const Descriptor& socket() const { return socket_; }

  unsigned outputs = 0;

 private:
  ControlMessage Next() {
    const Bytes bytes = ReadExactly(socket_, sizeof(ControlMessage));
    ControlMessage message;
    std::memcpy(&message, bytes.data(), sizeof message);
    return message;
  }
  Descriptor socket_;
  ControlMessage hello_;
};

TEST("relay: holds, marks exactly, releases in order; the way back is never held") {
  Lab lab;
  Controller daemon(lab);
  CHECK_EQ(daemon.hello().value, uint64_t{kRelayControlVersion} << 32 | 1);
  Bytes first;
  for (uint32_t i = 0; i < 300; ++i) Append(first, Frame(i, 60 + i * 5));
  // The last frame of the epoch is cut: it belongs to the next one.
  Bytes cut = Frame(300, 500);
  Append(first, Bytes(cut.begin(), cut.begin() + 100));
  WriteAll(lab.qemu, first);
  CHECK_EQ(daemon.Ask(ControlType::kBoundary), 300u);
  CHECK_EQ(daemon.outputs, 1u);
  Bytes second(cut.begin() + 100, cut.end());
  Append(second, Frame(301, 60));
  WriteAll(lab.qemu, second);
  daemon.AwaitOutput();
  CHECK(Silent(lab.target));
  WriteAll(lab.target, Frame(7, 1400));
  CHECK(Same(ReadExactly(lab.qemu, 1404), Frame(7, 1400)));
  CHECK_EQ(daemon.Ask(ControlType::kRelease), 300u);
  CHECK(Same(ReadExactly(lab.target, first.size() - 100),
             Bytes(first.begin(), first.end() - 100)));
  CHECK(Silent(lab.target));
  CHECK_EQ(daemon.Ask(ControlType::kRelease), 0u);
  CHECK(Silent(lab.target));
  const RelayStats stats = daemon.Stats();
  CHECK_EQ(stats.held_frames, 2u);
  CHECK_EQ(stats.boundary_frames, 0u);
  CHECK_EQ(stats.out_frames, 300u);
  CHECK_EQ(stats.out_bytes, first.size() - 100 - 300 * kPacketLengthBytes);
  CHECK_EQ(stats.in_frames, 1u);
  CHECK_EQ(stats.in_bytes, 1400u);
  CHECK_EQ(stats.dropped_frames, 0u);
  CHECK_EQ(stats.flags, kRelayHolding | kRelayQemuConnected | kRelayTargetConnected);
  CHECK_EQ(daemon.Ask(ControlType::kOpen), 2u);
  WriteAll(lab.qemu, Frame(302, 60));
  Append(cut, Frame(301, 60));
  Append(cut, Frame(302, 60));
  CHECK(Same(ReadExactly(lab.target, cut.size()), cut));
  CHECK_EQ(daemon.outputs, 2u);
}

TEST("relay: at its bound it reads no more, and goes on after the release; nothing is lost") {
  Lab lab(kHeldBytesMaxMin);
  Controller daemon(lab);
  Bytes flood;
  for (uint32_t i = 0; i < 2000; ++i) Append(flood, Frame(i, 1000));
  size_t sent = 0;
  double stalled_before_us = 0;
  Bytes received;
  for (int epoch = 1; sent < flood.size(); ++epoch) {
    // QEMU writes until it is blocked: the bound is reached and the socket is full.
    const double deadline_ms = MonotonicMs() + kDeadlineMs;
    for (;;) {
      const bool stalled = (lab.relay().Stats().flags & kRelayStalled) != 0;
      const size_t written = WriteNow(lab.qemu, std::span(flood).subspan(sent));
      sent += written;
      if (sent == flood.size() || (stalled && written == 0)) break;
      CHECK(lab.relay().Stats().held_bytes <= kHeldBytesMaxMin);
      CHECK(MonotonicMs() < deadline_ms);
    }
    CHECK(Silent(lab.target));
    // The boundary sees what the socket holds, too.
    const uint64_t frames = daemon.Ask(ControlType::kBoundary);
    const RelayStats stats = daemon.Stats();
    CHECK(stats.held_bytes <= sent && stats.held_bytes <= kHeldBytesMaxMin + kOvershootBytesMax);
    CHECK_EQ(stats.boundary_frames, frames);
    CHECK(static_cast<double>(stats.stalled_us) >= stalled_before_us);
    stalled_before_us = static_cast<double>(stats.stalled_us);
    CHECK_EQ(daemon.Ask(ControlType::kRelease), frames);
    Append(received, ReadExactly(lab.target, frames * 1004));
  }
  CHECK(Same(received, flood));
  const RelayStats stats = daemon.Stats();
  CHECK(stats.stalls > 0 && stats.stalled_us > 0);
  CHECK_EQ(stats.dropped_frames, 0u);
  CHECK_EQ(stats.held_bytes, 0u);
}

TEST("relay: prepared, it reads past the bound until the boundary") {
  Lab lab(kHeldBytesMaxMin, true, 4 << 20);
  Controller daemon(lab);
  Bytes flood;
  for (uint32_t i = 0; i < 1000; ++i) Append(flood, Frame(i, 1000));
  WriteAll(lab.qemu, std::span(flood).first(1004));
  lab.Until([](const RelayStats& stats) { return (stats.flags & kRelaySocketWide) != 0; });
  // All of it fits into the wide socket, at once, though nobody reads.
  CHECK_EQ(WriteNow(lab.qemu, std::span(flood).subspan(1004)), flood.size() - 1004);
  lab.Until([](const RelayStats& stats) { return (stats.flags & kRelayStalled) != 0; });
  daemon.Ask(ControlType::kPrepare);
  CHECK_EQ(daemon.Stats().held_frames, 1000u);
  WriteAll(lab.qemu, flood);  // on the way to its stop
  CHECK_EQ(daemon.Ask(ControlType::kBoundary), 2000u);
  CHECK(daemon.Stats().held_bytes == 2 * flood.size());
  WriteAll(lab.qemu, Frame(1, 1000));
  daemon.Ask(ControlType::kHold);
  CHECK_EQ(daemon.Stats().held_frames, 2000u);  // the bound is in force again
  daemon.Ask(ControlType::kRelease);
  CHECK(Same(ReadExactly(lab.target, flood.size()), flood));
  CHECK(Same(ReadExactly(lab.target, flood.size()), flood));
  lab.Until([](const RelayStats& stats) { return stats.held_frames == 1; });
}

TEST("relay: a slow target is waited for, in order, and its frames count as held") {
  Lab lab(kHeldBytesMaxMin, false);
  Bytes flood;
  for (uint32_t i = 0; i < 3000; ++i) Append(flood, Frame(i, 700));
  size_t sent = 0;
  // Nobody reads the target: its socket fills, then the relay, then QEMU's socket.
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  for (int idle = 0; idle < 20;) {
    const size_t now = WriteNow(lab.qemu, std::span(flood).subspan(sent));
    sent += now;
    idle = now == 0 ? idle + 1 : 0;
    ::usleep(1000);
    CHECK(lab.relay().Stats().held_bytes <= kHeldBytesMaxMin);
    CHECK(MonotonicMs() < deadline_ms);
  }
  CHECK(sent < flood.size());
  Bytes received;
  while (received.size() < flood.size()) {
    sent += WriteNow(lab.qemu, std::span(flood).subspan(sent));
    Append(received, ReadExactly(lab.target, std::min<size_t>(flood.size() - received.size(), 352)));
  }
  CHECK(Same(received, flood));
  CHECK_EQ(lab.Until([](const RelayStats& stats) { return stats.held_bytes == 0; }).dropped_frames,
           0u);
}

TEST("relay: a guest that does not read slows the network, and gets every frame whole") {
  Lab lab;
  Bytes flood;
  for (uint32_t i = 0; i < 4000; ++i) Append(flood, Frame(i, 1500));
  size_t sent = 0;
  for (int idle = 0; idle < 20;) {
    const size_t now = WriteNow(lab.target, std::span(flood).subspan(sent));
    sent += now;
    idle = now == 0 ? idle + 1 : 0;
    ::usleep(1000);
  }
  CHECK(sent < flood.size());
  Bytes received;
  while (received.size() < flood.size()) {
    sent += WriteNow(lab.target, std::span(flood).subspan(sent));
    Append(received,
           ReadExactly(lab.qemu, std::min<size_t>(flood.size() - received.size(), 1504)));
  }
  CHECK(Same(received, flood));
  lab.Until([](const RelayStats& stats) { return stats.in_frames == 4000; });
}

TEST("relay: a target that is gone loses what is released meanwhile, and is found again") {
  Lab lab;
  Controller daemon(lab);
  WriteAll(lab.qemu, Frame(1, 100));
  daemon.Ask(ControlType::kBoundary);
  lab.target.Close();
  lab.Until([&](const RelayStats&) { return lab.Count(RelayEvent::Type::kTargetLost) == 1; });
  // It connects to the listener at once: what it sends lies there until that is accepted.
  lab.AcceptTarget();
  lab.Until([&](const RelayStats&) { return lab.Count(RelayEvent::Type::kTargetFound) == 2; });
  daemon.Ask(ControlType::kRelease);
  CHECK(Same(ReadExactly(lab.target, 104), Frame(1, 100)));
  CHECK_EQ(lab.relay().Stats().dropped_frames, 0u);
}

TEST("relay: what a target that stays away would have got is dropped and counted") {
  TempDir dir;
  auto listener = ListenUnix(dir / "qemu");
  CHECK_OK(listener);
  Relay::Options options;
  options.qemu_socket = dir / "qemu";
  options.target = MakeStreamTarget(dir / "target");
  options.control_socket = dir / "control";
  options.held_bytes_max = 1 << 20;
  options.on_event = [](const RelayEvent&) {};
  auto relay = Relay::Start(std::move(options));
  CHECK_OK(relay);
  pollfd waiting{listener.value().get(), POLLIN, 0};
  CHECK(::poll(&waiting, 1, kDeadlineMs) == 1);
  const Descriptor qemu(::accept4(listener.value().get(), nullptr, nullptr, SOCK_CLOEXEC));
  WriteAll(qemu, Frame(1, 100));
  WriteAll(qemu, Frame(2, 100));
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  while (relay.value()->Stats().dropped_frames < 2) CHECK(MonotonicMs() < deadline_ms);
  CHECK_EQ(relay.value()->Stats().last_drop_errno, static_cast<uint32_t>(ENOENT));
  CHECK_EQ(relay.value()->Stats().held_bytes, 0u);
}

TEST("relay: QEMU that ends takes its held output along; the next one is served") {
  Lab lab;
  Controller daemon(lab);
  WriteAll(lab.qemu, Frame(1, 100));
  daemon.Ask(ControlType::kBoundary);
  WriteAll(lab.qemu, Frame(2, 100));
  daemon.AwaitOutput();
  WriteAll(lab.target, std::span<const std::byte>(Frame(9, 1000)).first(400));
  lab.qemu.Close();
  lab.AcceptQemu();
  const RelayStats stats =
      lab.Until([](const RelayStats& now) { return now.discarded_frames == 2; });
  CHECK_EQ(stats.held_bytes, 0u);
  CHECK_EQ(daemon.Ask(ControlType::kRelease), 0u);
  WriteAll(lab.qemu, Frame(3, 100));
  daemon.AwaitOutput();
  CHECK_EQ(daemon.Ask(ControlType::kBoundary), 1u);
  daemon.Ask(ControlType::kRelease);
  CHECK(Same(ReadExactly(lab.target, 104), Frame(3, 100)));
  // The frame whose first part came for the old one goes to the new one, whole.
  const Bytes rest = Frame(9, 1000);
  WriteAll(lab.target, std::span(rest).subspan(400));
  CHECK(Same(ReadExactly(lab.qemu, 1004), rest));
  CHECK_EQ(lab.Count(RelayEvent::Type::kDisconnected), 1u);
}

TEST("relay: at the bound, too, it sees that QEMU has ended") {
  Lab lab(kHeldBytesMaxMin);
  Bytes flood;
  for (uint32_t i = 0; i < 300; ++i) Append(flood, Frame(i, 1000));
  for (size_t sent = 0; (lab.relay().Stats().flags & kRelayStalled) == 0;) {
    sent += WriteNow(lab.qemu, std::span(flood).subspan(sent));
  }
  lab.qemu.Close();
  lab.AcceptQemu();
  CHECK_EQ(lab.Until([](const RelayStats& now) { return now.discarded_frames > 0; }).held_bytes, 0u);
}

TEST("relay: a peer that is no QEMU is left") {
  Lab lab;
  WriteAll(lab.qemu, Frame(1, 100));
  const char text[] = "GET / HTTP/1.1\r\n";
  WriteAll(lab.qemu, std::as_bytes(std::span(text)));
  lab.AcceptQemu();
  lab.Until([](const RelayStats& now) { return now.discarded_frames == 1; });
}

TEST("relay: a new controller replaces the old one, and is told of output that waits") {
  Lab lab;
  Controller first(lab);
  WriteAll(lab.qemu, Frame(1, 100));
  first.AwaitOutput();
  Controller second(lab);
  CHECK(first.Ended());
  second.AwaitOutput();
  CHECK_EQ(second.Ask(ControlType::kBoundary), 1u);
  CHECK_EQ(second.Ask(ControlType::kRelease), 1u);
  CHECK(Same(ReadExactly(lab.target, 104), Frame(1, 100)));
}

TEST("relay: without its controller it goes on holding") {
  Lab lab;
  {
    Controller daemon(lab);
    WriteAll(lab.qemu, Frame(1, 100));
    daemon.Ask(ControlType::kBoundary);
    // Killed in the middle of a request.
    const ControlMessage request{.type = static_cast<uint32_t>(ControlType::kRelease)};
    WriteAll(daemon.socket(), std::as_bytes(std::span(&request, 1)).first(9));
  }
  WriteAll(lab.qemu, Frame(2, 100));
  CHECK(Silent(lab.target));
  Controller next(lab);
  CHECK_EQ(next.hello().value & 1, 1u);
  CHECK(Silent(lab.target));
  CHECK_EQ(next.Ask(ControlType::kRelease), 1u);
  CHECK(Same(ReadExactly(lab.target, 104), Frame(1, 100)));
}

TEST("relay: a controller that talks nonsense, or does not listen, is dropped") {
  Lab lab;
  Controller stranger(lab);
  stranger.Send(static_cast<ControlType>(77));
  CHECK(stranger.Ended());
  Controller deaf(lab);
  const ControlMessage request{.type = static_cast<uint32_t>(ControlType::kStats)};
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  while (::send(deaf.socket().get(), &request, sizeof request, MSG_NOSIGNAL) > 0) {
    CHECK(MonotonicMs() < deadline_ms);
  }
  Controller daemon(lab);
  WriteAll(lab.qemu, Frame(1, 100));
  daemon.AwaitOutput();
  CHECK_EQ(daemon.Ask(ControlType::kBoundary), 1u);
}

TEST("relay: requests in one write are answered in order") {
  Lab lab;
  Controller daemon(lab);
  WriteAll(lab.qemu, Frame(1, 100));
  std::vector<ControlMessage> requests;
  for (const auto type : {ControlType::kBoundary, ControlType::kRelease, ControlType::kOpen,
                          ControlType::kHold, ControlType::kPrepare}) {
    requests.push_back({.type = static_cast<uint32_t>(type)});
  }
  WriteAll(daemon.socket(), std::as_bytes(std::span(requests)));
  CHECK_EQ(daemon.Answer(ControlType::kBoundary), 1u);
  CHECK_EQ(daemon.Answer(ControlType::kRelease), 1u);
  for (const auto type : {ControlType::kOpen, ControlType::kHold, ControlType::kPrepare}) {
    CHECK_EQ(daemon.Answer(type), 0u);
  }
}

TEST("relay: what cannot be is refused at the start; what was left behind is replaced") {
  TempDir dir;
  const auto start = [&](std::unique_ptr<Target> target) {
    Relay::Options options;
    options.qemu_socket = dir / "qemu";
    options.target = std::move(target);
    options.control_socket = dir / "control";
    options.held_bytes_max = 1 << 20;
    options.on_event = [](const RelayEvent&) {};
    return Relay::Start(std::move(options));
  };
  CHECK_ERROR(start(MakeTapTarget("hf-none")), ErrorCode::kSyscall, "does not exist");
  const int descriptors = OpenDescriptors();
  {
    auto first = start(MakeStreamTarget(dir / "target"));
    CHECK_OK(first);
    CHECK_ERROR(start(MakeStreamTarget(dir / "target")), ErrorCode::kSyscall, "another process");
  }
  CHECK(::access((dir / "control").c_str(), F_OK) != 0);
  CHECK_OK(ListenUnix(dir / "control"));  // closed at once: the file stays
  CHECK(::access((dir / "control").c_str(), F_OK) == 0);
  CHECK_OK(start(MakeStreamTarget(dir / "target")));
  CHECK_EQ(OpenDescriptors(), descriptors);
}

TEST("relay: ends at once, with frames held and connections open") {
  const int descriptors = OpenDescriptors();
  {
    Lab lab;
    WriteAll(lab.qemu, Frame(1, 100));
    lab.Until([](const RelayStats& stats) { return stats.held_frames == 1; });
    lab.EndRelay();
    CHECK_EQ(lab.Count(RelayEvent::Type::kEnded), 1u);
    std::byte byte;
    CHECK_EQ(::recv(lab.target.get(), &byte, 1, 0), 0);  // nothing left with it
  }
  CHECK_EQ(OpenDescriptors(), descriptors);
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
