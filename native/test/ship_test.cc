// The primary's side of the disks: rings that disk servers fill under a writing
// guest, the shipper, and a peer that replays what comes.

#include <unistd.h>

#include "test/ship_lab.h"

namespace holdfast::test {
namespace {

constexpr auto kAll = DiskPlan::What::kAll;
constexpr auto kChanged = DiskPlan::What::kChanged;

// Data, holes, and zeros that were written.
Bytes SomeContent(Random& random, size_t bytes) {
  Bytes content(bytes);
  for (size_t at = 0; at < bytes; at += 200'000) {
    if (random() % 2 == 0) continue;
    const Bytes part = RandomBytes(random, std::min<size_t>(bytes - at, random() % 150'000));
    std::copy(part.begin(), part.end(), content.begin() + static_cast<ptrdiff_t>(at));
  }
  return content;
}

Bytes Zeros(size_t bytes) { return Bytes(bytes); }

void AwaitReceived(Shipping& shipping, const std::vector<uint64_t>& heads) {
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  while (!shipping->Received(heads)) {
    CHECK(MonotonicMs() < deadline_ms);
    ::usleep(1000);
  }
}

TEST("base beside writes: at each boundary the peer has what the guest had") {
  for (uint64_t seed = 1; seed <= 2; seed++) {
    Random random(seed);
    const TempDir dir;
    TestDisk a(dir, "a", SomeContent(random, (6 << 20) + 512 * 77));
    TestDisk b(dir, "b", SomeContent(random, 1 << 20));
    Guest guests[] = {Guest(a, seed + 10), Guest(a, seed + 20), Guest(b, seed + 30)};
    // The peer lists them the other way round, and has other things on them.
    Shipping shipping({&a, &b}, {.disks = {{"b", RandomBytes(random, b.bytes())},
                                           {"a", RandomBytes(random, a.bytes())}}});
    CHECK_OK(shipping.connected);
    CHECK_OK(a->StartLog());
    CHECK_OK(b->StartLog());
    auto synced = shipping->Sync(std::vector<Shipper::Plan>{{"a", kAll}, {"b", kAll}}, TestSyncId(1));
    CHECK_OK(synced);
    CHECK_EQ(synced.value().bytes, shipping.peer->base_bytes());
    CHECK_EQ(synced.value().hole_bytes, shipping.peer->hole_bytes());
    CHECK_EQ(synced.value().bytes + synced.value().hole_bytes, a.bytes() + b.bytes());
    for (uint64_t epoch = 1; epoch <= 6; epoch++) {
      ::usleep(static_cast<useconds_t>(random() % 20'000));
      for (Guest& guest : guests) guest.Stop();
      auto heads = shipping->Heads();
      CHECK_OK(heads);
      const Bytes had_a = a.Content();
      const Bytes had_b = b.Content();
      for (Guest& guest : guests) guest.Continue();
      // Captured and given up: the next has its writes.
      if (epoch % 3 == 0) continue;
      shipping->MarkBoundary(epoch, heads.value());
      const std::vector<Bytes> has = shipping.peer->AwaitBoundary(epoch);
      CHECK(Same(has[0], had_b));
      CHECK(Same(has[1], had_a));
      AwaitReceived(shipping, heads.value());
    }
    CHECK(shipping.peer->records() > 0);
    for (const auto& disk : shipping->shipped()->disks) {
      CHECK_EQ(disk->copied_bytes.load(), uint64_t{0});  // all by reference
    }
    CHECK(!shipping->error());
  }
}

TEST("after an outage only what either side has changed travels") {
  Random random(4);
  const TempDir dir;
  constexpr size_t kBytes = (8 << 20) + 4096;
  TestDisk disk(dir, "disk", RandomBytes(random, kBytes));
  DiskPeer::Disk replica{"disk", Zeros(kBytes)};
  {
    Shipping shipping({&disk}, {.disks = {replica}});
    CHECK_OK(shipping.connected);
    CHECK_OK(disk->StartLog());
    CHECK_OK(shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(9)));
    auto heads = shipping->Heads();
    CHECK_OK(heads);
    shipping->MarkBoundary(1, heads.value());
    CHECK(Same(shipping.peer->AwaitBoundary(1)[0], disk.Content()));
    replica = shipping.peer->Stop()[0];
  }
  disk->StopLog();
  CHECK_OK(disk->SetSyncId(TestSyncId(9)));
  CHECK_OK(disk->ClearMap());
  replica.sync_id = TestSyncId(9);
  replica.trusted = true;
  // The primary writes unprotected, the replica has lost two blocks to an epoch
  // that was never committed, and the last, which is a short one.
  CHECK(disk->Write(RandomBytes(random, 70'000), 3 * kDiskBlockBytes + 512, false) == 0);
  CHECK(disk->Trim(20 * kDiskBlockBytes, 2 * kDiskBlockBytes, false) == 0);
  replica.marks = {{40, 2}, {128, 1}};
  for (uint64_t at : {40 * kDiskBlockBytes, 128 * kDiskBlockBytes}) {
    std::fill_n(replica.image.begin() + static_cast<ptrdiff_t>(at), 4096, std::byte{7});
  }
  Shipping shipping({&disk}, {.disks = {replica}});
  CHECK_OK(shipping.connected);
  CHECK_EQ(shipping->differences()[0].local_marked_bytes, 4 * kDiskBlockBytes);
  CHECK(shipping->differences()[0].local_trusted);
  CHECK(shipping->differences()[0].local_sync_id == TestSyncId(9));
  Guest guest(disk, 5, 4096);
  CHECK_OK(disk->StartLog());
  auto synced = shipping->Sync(std::vector<Shipper::Plan>{{"disk", kChanged}}, TestSyncId(10));
  CHECK_OK(synced);
  guest.Stop();
  CHECK(shipping.peer->plans()[0].what == kChanged);
  auto heads = shipping->Heads();
  CHECK_OK(heads);
  shipping->MarkBoundary(7, heads.value());
  CHECK(Same(shipping.peer->AwaitBoundary(7)[0], disk.Content()));
  // Those blocks, and what the guest wrote between its start and the look at the map.
  const uint64_t least = 6 * kDiskBlockBytes + 4096;
  const uint64_t sent = synced.value().bytes + synced.value().hole_bytes;
  CHECK(sent >= least);
  CHECK(sent <= least + guest.writes() * 2 * kDiskBlockBytes);
}

TEST("the ring's space is free again only when the peer has received it") {
  Random random(6);
  const TempDir dir;
  TestDisk disk(dir, "disk", Zeros(64 << 20));
  Shipping shipping({&disk}, {.disks = {{"disk", Zeros(64 << 20)}}, .silent = true});
  CHECK_OK(shipping.connected);
  CHECK_OK(disk->StartLog());
  CHECK_OK(shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1)));
  Guest guest(disk, 7);
  // The writer fills half of the circle, and waits there.
  const auto stalled = [&disk] { return disk->stats().stalls > 0; };
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  while (!stalled()) {
    CHECK(MonotonicMs() < deadline_ms);
    ::usleep(1000);
  }
  const LogReader& log = *shipping->shipped()->disks[0]->log;
  shipping.peer->AwaitLog(log.ring().header().head.load() - log.start());
  CHECK_EQ(log.received(), log.start());
  CHECK_EQ(log.ring().header().tail.load(), log.start());
  CHECK_EQ(disk->stats().stalls, uint64_t{1});
  // While QEMU stops there is room for the rest.
  const uint64_t before = guest.writes();
  shipping->shipped()->SetStopPending(true);
  guest.Stop();
  shipping->shipped()->SetStopPending(false);
  CHECK_EQ(guest.writes(), before + 1);
  // Then it goes round and round.
  shipping.peer->Speak();
  guest.Continue();
  shipping.peer->AwaitLog(4 * kTestRingBytes);
  guest.Stop();
  auto heads = shipping->Heads();
  CHECK_OK(heads);
  shipping->MarkBoundary(1, heads.value());
  CHECK(Same(shipping.peer->AwaitBoundary(1)[0], disk.Content()));
  AwaitReceived(shipping, heads.value());
  CHECK_EQ(log.ring().header().tail.load(), heads.value()[0]);
}

// One connection after the other on the same ring, each cut a frame later, up to
// one that lives through base, log and boundary.
TEST("a connection that is cut at any frame ends both threads, and the next begins anew") {
  Random random(8);
  const TempDir dir;
  constexpr size_t kBytes = 3 << 20;
  TestDisk disk(dir, "disk", SomeContent(random, kBytes));
  Guest guest(disk, 9, 20'000);
  for (uint64_t cut = 0;; cut++) {
    Shipping shipping({&disk}, {.disks = {{"disk", Zeros(kBytes)}}, .frames_max = cut});
    CHECK_OK(shipping.connected);
    CHECK_OK(disk->StartLog());
    auto synced = shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1));
    bool boundary_came = false;
    if (synced.ok()) {
      guest.Stop();
      auto heads = shipping->Heads();
      CHECK_OK(heads);
      const Bytes had = disk.Content();
      guest.Continue();
      shipping->MarkBoundary(1, heads.value());
      const double deadline_ms = MonotonicMs() + kDeadlineMs;
      // The log can be there, and the cut before the boundary.
      while (!(shipping->Received(heads.value()) && shipping.peer->Reached(1)) && !shipping->error()) {
        CHECK(MonotonicMs() < deadline_ms);
        ::usleep(500);
      }
      boundary_came = shipping.peer->Reached(1);
      if (boundary_came) CHECK(Same(shipping.peer->AwaitBoundary(1)[0], had));
    } else {
      CHECK_ERROR(synced, ErrorCode::kPeerLost, "");
    }
    if (boundary_came && shipping.peer->frames() < cut) break;
    const double deadline_ms = MonotonicMs() + kDeadlineMs;
    while (shipping.ends == 0) {
      CHECK(MonotonicMs() < deadline_ms);
      ::usleep(500);
    }
    CHECK_EQ(shipping->error()->code, ErrorCode::kPeerLost);
    CHECK_EQ(shipping.ends.load(), 1);
    if (cut > 30) cut += 10;
    CHECK(cut < 2000);
  }
}

TEST("what the peer refuses with is why the connection ended") {
  Random random(10);
  const TempDir dir;
  TestDisk disk(dir, "disk", RandomBytes(random, 32 << 20));
  Shipping shipping({&disk}, {.disks = {{"disk", Zeros(32 << 20)}},
                              .frames_max = 3,
                              .error = "no space left for disk's journal"});
  CHECK_OK(shipping.connected);
  CHECK_OK(disk->StartLog());
  auto synced = shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1));
  CHECK_ERROR(synced, ErrorCode::kNoSpace, "no space left for disk's journal");
}

TEST("a cancelled connection ends, and so does one that is destroyed in the middle") {
  Random random(11);
  const TempDir dir;
  TestDisk disk(dir, "disk", RandomBytes(random, 16 << 20));
  for (const bool cancelled : {true, false}) {
    Shipping shipping({&disk}, {.disks = {{"disk", Zeros(16 << 20)}}, .silent = true});
    CHECK_OK(shipping.connected);
    CHECK_OK(disk->StartLog());
    Guest guest(disk, 12);
    if (cancelled) {
      std::thread canceller([&] {
        ::usleep(3000);
        shipping.cancel.Cancel();
      });
      // The guest's writes stall on a silent peer: without the signal it would last.
      (void)shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1));
      canceller.join();
      const double deadline_ms = MonotonicMs() + kDeadlineMs;
      while (!shipping->error()) {
        CHECK(MonotonicMs() < deadline_ms);
        ::usleep(500);
      }
      CHECK_EQ(shipping->error()->code, ErrorCode::kCancelled);
    }
    shipping.connected = Error{};
    CHECK_EQ(shipping.ends.load(), cancelled ? 1 : 0);
    disk->StopLog();  // or the guest would wait for room
  }
}

TEST("disks that do not fit together are refused") {
  Random random(13);
  const TempDir dir;
  TestDisk disk(dir, "disk", Zeros(1 << 20));
  const auto refused = [&](DiskPeer::Options options, const char* text) {
    Shipping shipping({&disk}, std::move(options));
    CHECK_ERROR(shipping.connected, ErrorCode::kProtocol, text);
  };
  refused({.disks = {{"other", Zeros(1 << 20)}}}, "disk other, which the VM lacks");
  refused({.disks = {{"disk", Zeros(2 << 20)}}}, "2097152 bytes of disk disk, not 1048576");
  refused({.disks = {{"disk", Zeros(1 << 20)}, {"disk", Zeros(1 << 20)}}}, "2 disks");

  // Not synchronised before, or the other's map says nothing: everything must go.
  for (const bool trusted : {true, false}) {
    CHECK_OK(disk->SetSyncId(trusted ? SyncId{} : TestSyncId(3)));
    DiskPeer::Disk replica{"disk", Zeros(1 << 20)};
    replica.trusted = trusted;
    replica.sync_id = trusted ? SyncId{} : TestSyncId(3);
    Shipping shipping({&disk}, {.disks = {replica}});
    CHECK_OK(shipping.connected);
    CHECK_OK(disk->StartLog());
    CHECK_ERROR(shipping->Sync(std::vector<Shipper::Plan>{{"disk", kChanged}}, TestSyncId(1)),
                ErrorCode::kProtocol, "all of it must be sent");
    CHECK_ERROR(shipping->Sync(std::vector<Shipper::Plan>{{"disc", kAll}}, TestSyncId(1)),
                ErrorCode::kProtocol, "no plan for disk disk");
    // A refusal of ours leaves the connection usable.
    CHECK_OK(shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1)));
    CHECK_ERROR(shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1)),
                ErrorCode::kLimit, "once");
  }
}

TEST("no epoch ends in a log that has a gap") {
  const TempDir dir;
  TestDisk disk(dir, "disk", Zeros(1 << 20));
  Shipping shipping({&disk}, {.disks = {{"disk", Zeros(1 << 20)}}});
  CHECK_OK(shipping.connected);
  CHECK_ERROR(shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1)),
              ErrorCode::kPeerLost, "no longer logs");
  CHECK_OK(disk->StartLog());
  CHECK_OK(shipping->Sync(std::vector<Shipper::Plan>{{"disk", kAll}}, TestSyncId(1)));
  CHECK_OK(shipping->Heads());
  disk->StopLog();
  CHECK_ERROR(shipping->Heads(), ErrorCode::kPeerLost, "no longer logs");
  // A server that was restarted has a ring of its own, and writes what none sees here.
  CHECK_OK(disk->StartLog());
  CHECK_OK(shipping->Heads());
  disk.Restart();
  CHECK_ERROR(shipping->Heads(), ErrorCode::kPeerLost, "was restarted");
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
