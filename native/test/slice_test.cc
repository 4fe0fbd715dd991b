// Slices that are sent ahead, in place of which later ones come: whatever is
// written, sent, given up and lost in between, and in whatever order the streams
// arrive, the replica after each commit is what RAM was at that pause.

#include "capture/ahead_pages.h"
#include "guest/tracker.h"
#include "test/lab.h"
#include "wire/digest.h"
#include "wire/frame.h"
#include "wire/run_table.h"
#include "wire/state_delta.h"

namespace holdfast::test {
namespace {

constexpr uint32_t kPage = 4096;
constexpr uint64_t kPages = 200;

// The primary's bookkeeping over a guest that writes between any two steps, with
// staging in a second memfd.
class Guest {
 public:
  explicit Guest(uint64_t seed) : random(seed), ram(kPages, kPage), staging_(6 * kPages, kPage) {
    ram.Scribble(random, kPages / 2);
    (void)ram.TakeDirty();
  }

  void Write() { ram.Scribble(random, random() % 60); }

  // Stages what was written, and sends it as a slice where there is a place for it.
  Status Slice(EpochWriter& writer, uint64_t epoch, bool send) {
    const auto dirty = Scan();
    if (ahead_.places() + PagesOf(dirty) > 5 * kPages) {
      carry_ = dirty;
      return {};
    }
    const auto staged = Copy(dirty, ahead_.places());
    ahead_.Staged(staged);
    if (!send || ahead_.slices() + 1 >= kSlicesMax) return {};
    if (!std::exchange(begun_, true)) HF_TRY(writer.BeginEpoch(epoch));
    HF_TRY(writer.Pages(staging_.source(), ahead_.unsent(), true));
    HF_TRY(writer.EndSlice());
    ahead_.Sent();
    return {};
  }

  // The guest does not write from here …
  void Pause() {
    const auto dirty = Scan();
    // Placed behind all that was sent, which may still be on its way.
    std::vector<PageRun> all = UnionOf(ahead_.unsent(), dirty);
    captured_ = Copy(all, ahead_.places_sent());
    sent_ahead_ = ahead_.sent();
    ahead_.Clear();
    at_pause = ram.Copy();
  }

  // … to here. What it writes afterwards is of the next epoch.
  Status Commit(EpochWriter& writer, uint64_t epoch, const Bytes& device) {
    if (!std::exchange(begun_, true)) HF_TRY(writer.BeginEpoch(epoch));
    HF_TRY(writer.Pages(staging_.source(), captured_, true));
    HF_TRY(writer.Device(device));
    HF_TRY(writer.Commit());
    auto ack = writer.AwaitAck(epoch);
    if (!ack.ok()) return ack.error();
    begun_ = false;
    captured_.clear();
    sent_ahead_.clear();
    return {};
  }

  void GiveUp() {
    for (const auto& set : {captured_, sent_ahead_, ahead_.Pages()}) carry_ = UnionOf(set, carry_);
    captured_.clear();
    sent_ahead_.clear();
    ahead_.Clear();
    begun_ = false;
  }

  bool begun() const { return begun_; }

  Random random;
  GuestRam ram;
  Bytes at_pause;

 private:
  std::vector<PageRun> Scan() {
    auto dirty = UnionOf(ram.TakeDirty(), std::exchange(carry_, {}));
    ahead_.Supersede(dirty);
    return dirty;
  }

  std::vector<PageRun> Copy(std::vector<PageRun> runs, uint64_t place) {
    for (PageRun& run : runs) {
      std::memcpy(staging_.page(place), ram.page(run.first_page), uint64_t{run.pages} * kPage);
      run.source_page = place;
      place += run.pages;
    }
    return runs;
  }

  GuestRam staging_;
  AheadPages ahead_;
  std::vector<PageRun> carry_;
  std::vector<PageRun> captured_;
  std::vector<PageRun> sent_ahead_;
  bool begun_ = false;
};

TEST("random writes, slices, pauses, epochs given up and connections lost: RAM as at the pause") {
  for (uint64_t seed = 0; seed < 12; seed++) {
    const TempDir dir;
    Backup backup;
    Guest guest(seed);
    Random& random = guest.random;
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", guest.ram.bytes())));
    const CancelSignal cancel;
    const auto connect = [&] {
      return ConnectWriter(backup->port(), {Token(7), kPage, guest.ram.bytes(), seed % 4 != 3},
                           kAllStrategies[seed % kStrategyCount], cancel,
                           static_cast<unsigned>(1 + random() % 3));
    };
    auto writer = connect();
    CHECK_OK(writer);
    CHECK_OK(SendRound(*writer.value(), guest.ram, guest.ram.All()));
    uint64_t epoch = 1;
    size_t losses = 0;
    for (int step = 0; step < 250; step++) {
      guest.Write();
      writer.value()->UseStrategy(kAllStrategies[random() % kStrategyCount]);
      const uint64_t what = random() % 16;
      if (what < 8) {
        CHECK_OK(guest.Slice(*writer.value(), epoch, what < 6));
        continue;
      }
      if (what == 8 && guest.begun()) {
        guest.GiveUp();
        CHECK_OK(writer.value()->Abandon());
        epoch += random() % 2;
        continue;
      }
      if (what == 9 && epoch > 1) {
        guest.GiveUp();
        writer = Error::Of(ErrorCode::kCancelled, "lost");
        backup.Await(ReceiverEvent::Type::kDisconnected, ++losses);
        writer = connect();
        CHECK_OK(writer);
        continue;
      }
      guest.Pause();
      guest.Write();
      if (what == 10) {  // a capture that fails
        const bool begun = guest.begun();
        guest.GiveUp();
        if (begun) CHECK_OK(writer.value()->Abandon());
        continue;
      }
      CHECK_OK(guest.Commit(*writer.value(), epoch, RandomBytes(random, 100)));
      for (size_t n = 1;; n++) {
        if (backup.Await(ReceiverEvent::Type::kApplied, n).epoch == epoch) break;
      }
      CHECK(Same(ReadFile(dir / "ram"), guest.at_pause));
      epoch++;
    }
    CHECK(epoch > 20 && losses > 0);
  }
}

// Frames of a primary of the test's own, which agrees on no digests.
class RawPrimary {
 public:
  RawPrimary(uint16_t port, uint64_t ram_bytes, unsigned streams) {
    HelloBody hello;
    hello.page_size = kPage;
    hello.ram_bytes = ram_bytes;
    hello.token = Token(7);
    hello.streams = static_cast<uint16_t>(streams);
    hello.flags = 0;
    for (unsigned i = 0; i < streams; i++) {
      RawClient& client = *clients_.emplace_back(std::make_unique<RawClient>(port));
      hello.stream = static_cast<uint16_t>(i);
      client.Send(EncodeHeader({.type = FrameType::kHello, .payload_bytes = HelloBody::kBytes}));
      client.Send(EncodeHello(hello));
      const Bytes answer = client.Read(kFrameHeaderBytes + HelloOkBody::kBytes);
      hello.link = DecodeHelloOk(std::span(answer).last<HelloOkBody::kBytes>()).link;
    }
  }

  void Send(unsigned stream, FrameHeader header, std::span<const std::byte> payload = {},
            std::span<const std::byte> table = {}) {
    header.table_bytes = static_cast<uint32_t>(table.size());
    header.payload_bytes = payload.size();
    clients_[stream]->Send(EncodeHeader(header));
    clients_[stream]->Send(table);
    clients_[stream]->Send(payload);
  }

  // One page in one frame; of zeros as ZERO.
  void Page(unsigned stream, uint64_t epoch, uint32_t slice, uint64_t page, int fill) {
    RunTableWriter table;
    table.Add({page, 1});
    const Bytes bytes(fill == 0 ? 0 : kPage, static_cast<std::byte>(fill));
    Send(stream,
         {.type = fill == 0 ? FrameType::kZero : FrameType::kPages, .epoch = epoch, .slice = slice},
         bytes, table.bytes());
  }

  void Begin(unsigned stream, uint64_t epoch) {
    Send(stream, {.type = FrameType::kBegin, .epoch = epoch});
  }
  void End(unsigned stream, uint64_t epoch, PageTotals totals) {
    if (stream == 0) Send(0, {.type = FrameType::kDevice, .epoch = epoch});
    const auto part = EncodePart({totals, 0});
    Send(stream,
         {.type = stream == 0 ? FrameType::kCommit : FrameType::kEndPart, .epoch = epoch}, part);
  }
  FrameHeader Answer() {
    const Bytes head = clients_[0]->Read(kFrameHeaderBytes);
    auto header = DecodeHeader(std::span(head).first<kFrameHeaderBytes>(), 0);
    CHECK_OK(header);
    (void)clients_[0]->Read(header.value().payload_bytes);
    return header.value();
  }
 private:
  std::vector<std::unique_ptr<RawClient>> clients_;
};

TEST("the latest slice counts, whichever stream is first; zeros in place of bytes, and bytes of zeros") {
  const TempDir dir;
  Backup backup;
  constexpr uint64_t kFew = 8;
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", kFew * kPage)));
  RawPrimary primary(backup->port(), kFew * kPage, 2);
  Bytes expected(kFew * kPage);
  for (uint64_t epoch = 1; epoch <= 60; epoch++) {
    const auto old_fill = static_cast<int>(epoch);
    const auto new_fill = static_cast<int>(100 + epoch);
    // Stream 1 has sent the later slices before stream 0 begins with the first.
    primary.Begin(1, epoch);
    primary.Page(1, epoch, 1, 0, new_fill);
    primary.Page(1, epoch, 1, 1, 0);
    primary.Page(1, epoch, 2, 2, new_fill);
    primary.Page(1, epoch, 3, 3, 0);
    primary.End(1, epoch, {2, 2});
    primary.Begin(0, epoch);
    primary.Page(0, epoch, 0, 0, old_fill);
    primary.Page(0, epoch, 0, 1, old_fill);
    primary.Page(0, epoch, 0, 2, 0);
    primary.Page(0, epoch, 1, 2, 0);
    primary.Page(0, epoch, 1, 3, old_fill);
    primary.Page(0, epoch, 7, 4, new_fill);
    primary.End(0, epoch, {4, 2});
    CHECK(primary.Answer().type == FrameType::kAck);
    backup.Await(ReceiverEvent::Type::kApplied, epoch);
    std::memset(expected.data(), new_fill, kPage);
    std::memset(expected.data() + 2 * kPage, new_fill, kPage);
    std::memset(expected.data() + 4 * kPage, new_fill, kPage);
    CHECK(Same(ReadFile(dir / "ram"), expected));
  }
}

TEST("an epoch that was given up is as if it had never been, and its number is free") {
  const TempDir dir;
  Backup backup;
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", 8 * kPage)));
  RawPrimary primary(backup->port(), 8 * kPage, 2);
  const auto abandon = [&primary](uint64_t epoch) {
    for (const unsigned stream : {1u, 0u}) {
      primary.Begin(stream, epoch);
      primary.Page(stream, epoch, stream, stream, 77);
      primary.Send(stream, {.type = FrameType::kAbandon, .epoch = epoch});
    }
    const FrameHeader answer = primary.Answer();
    CHECK(answer.type == FrameType::kAbandoned && answer.epoch == epoch);
  };
  for (uint64_t epoch = 1; epoch <= 5; epoch++) {
    for (int i = 0; i < 3; i++) abandon(epoch);
    abandon(epoch + 9);
    for (const unsigned stream : {0u, 1u}) primary.Begin(stream, epoch);
    primary.Page(0, epoch, 0, 5, static_cast<int>(epoch));
    for (const unsigned stream : {0u, 1u}) primary.End(stream, epoch, {1u - stream, 0});
    CHECK(primary.Answer().type == FrameType::kAck);
  }
  auto fenced = backup->Fence();
  CHECK_OK(fenced);
  CHECK_EQ(fenced.value().epoch, uint64_t{5});
  CHECK(!fenced.value().partial_epoch_dropped);
  Bytes expected(8 * kPage);
  std::memset(expected.data() + 5 * kPage, 5, kPage);
  CHECK(Same(ReadFile(dir / "ram"), expected));
}

TEST("fencing at any moment with slices open: the last epoch that was committed") {
  Random random(51);
  for (int i = 0; i < 30; i++) {
    const TempDir dir;
    Backup backup;
    Guest guest(static_cast<uint64_t>(i));
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", guest.ram.bytes())));
    const CancelSignal cancel;
    auto writer = ConnectWriter(backup->port(), {Token(7), kPage, guest.ram.bytes()},
                                kAllStrategies[i % kStrategyCount], cancel, i % 3 + 1);
    CHECK_OK(writer);
    CHECK_OK(SendRound(*writer.value(), guest.ram, guest.ram.All()));
    uint64_t acknowledged = 0;
    std::vector<Bytes> paused;
    std::thread primary([&] {
      for (uint64_t epoch = 1;; epoch++) {
        Status sent;
        for (int slice = 0; slice < 4 && sent.ok(); slice++) {
          guest.Write();
          sent = guest.Slice(*writer.value(), epoch, true);
        }
        guest.Write();
        guest.Pause();
        paused.push_back(guest.at_pause);
        if (sent.ok()) sent = guest.Commit(*writer.value(), epoch, Bytes(10));
        if (!sent.ok()) {
          CHECK(sent.error().code == ErrorCode::kFenced ||
                sent.error().code == ErrorCode::kPeerLost);
          return;
        }
        acknowledged = epoch;
      }
    });
    backup.Await(ReceiverEvent::Type::kCommitted, 1 + random() % 3);
    ::usleep(static_cast<useconds_t>(random() % 3000));
    auto fenced = backup->Fence();
    CHECK_OK(fenced);
    const Bytes replica = ReadFile(dir / "ram");
    primary.join();
    const uint64_t epoch = fenced.value().epoch;
    CHECK(acknowledged <= epoch && epoch <= acknowledged + 1);
    CHECK(Same(replica, paused[epoch - 1]));
  }
}

TEST("device states as deltas: what the standby is given is whole; a wrong one is void") {
  const TempDir dir;
  Random random(52);
  GuestRam ram(8, kPage);
  Bytes state = RandomBytes(random, 30'000);
  for (int round = 0; round < 6; round++) {
    Backup backup;
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
    const CancelSignal cancel;
    auto writer = ConnectWriter(backup->port(), {Token(7), kPage, ram.bytes(), round % 2 == 0},
                                Strategy::kCopy, cancel, 2);
    CHECK_OK(writer);
    for (uint64_t epoch = 1; epoch <= 20; epoch++) {
      state[random() % state.size()] ^= std::byte{1};
      if (epoch % 5 == 0) state.resize(20'000 + random() % 20'000, std::byte{1});
      CHECK_OK(SendEpoch(*writer.value(), ram, {}, epoch, state));
      const uint64_t sent = writer.value()->device_bytes_sent();
      if (epoch == 1) CHECK_EQ(sent, state.size());
      if (epoch % 5 > 1) CHECK(sent < 50);
    }
    CHECK_OK(backup->Fence());
    Standby standby(dir / "standby");
    CHECK_OK(backup->WriteState(dir / "standby"));
    CHECK(Same(standby.Received(), state));
    ::unlink((dir / "standby").c_str());
  }
  Backup backup;
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", 8 * kPage)));
  RawPrimary primary(backup->port(), 8 * kPage, 1);
  primary.Begin(0, 1);
  primary.End(0, 1, {});
  CHECK(primary.Answer().type == FrameType::kAck);
  Bytes delta(kStateDeltaHeadBytes, std::byte{0});  // of an empty state, with another digest
  primary.Begin(0, 2);
  primary.Send(0, {.type = FrameType::kDeviceDelta, .epoch = 2}, delta);
  CHECK_EQ(backup.Await(ReceiverEvent::Type::kDisconnected).error.code, ErrorCode::kChecksum);
  auto fenced = backup->Fence();
  CHECK_OK(fenced);
  CHECK_EQ(fenced.value().epoch, uint64_t{1});
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
