// A disk that is served: image, log and map say the same, whatever comes at once.

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "disk/journal.h"
#include "disk/record.h"
#include "nbdkit/disk_server.h"
#include "test/log_follower.h"

namespace holdfast::test {
namespace {

constexpr uint64_t kImageBytes = 8 << 20;

class Disk {
 public:
  explicit Disk(bool active = true) {
    const Descriptor image(::open((dir / "image").c_str(), O_RDWR | O_CREAT, 0600));
    CHECK(::ftruncate(image.get(), kImageBytes) == 0);
    auto server = OpenServer(active);
    CHECK_OK(server);
    server_ = std::move(server).value();
    server_->Begin();
  }

  Result<std::unique_ptr<DiskServer>> OpenServer(bool active) {
    return DiskServer::Open({.image_path = dir / "image",
                             .meta_path = dir.path(),
                             .ring_path = ring_path(),
                             .ring_bytes = kRingBytesMin,
                             .active = active});
  }
  std::string ring_path() const { return dir / "ring"; }
  DiskServer* operator->() { return server_.get(); }
  void Kill() { server_.reset(); }

  TempDir dir;

 private:
  std::unique_ptr<DiskServer> server_;
};

Bytes Filled(uint64_t count, int value) { return Bytes(count, static_cast<std::byte>(value)); }

Bytes ImageOf(const Disk& disk) { return ReadFile(disk.dir / "image"); }

TEST("disk: what four clients do at once, overlapping, is in the log in the image's order") {
  Disk disk;
  LogFollower follower(disk.ring_path());
  CHECK_OK(disk->StartLog());
  follower.Start();
  std::vector<std::thread> clients;
  for (uint64_t own = 0; own < 4; own++) {
    clients.emplace_back([&disk, own] {
      Random random(80 + own);
      for (int step = 0; step < 400; step++) {
        const uint64_t offset = random() % (kImageBytes / 8);  // close together
        const uint64_t length = 1 + random() % (step % 50 == 0 ? 3 << 20 : 40'000);
        const bool fua = random() % 64 == 0;
        switch (random() % 8) {
          case 0:
            CHECK_EQ(disk->Zero(offset, length, random() % 2 == 0, false, fua), 0);
            break;
          case 1:
            CHECK_EQ(disk->Trim(offset, length, fua), 0);
            break;
          default:
            CHECK_EQ(disk->Write(RandomBytes(random, length), offset, fua), 0);
        }
        if (random() % 64 == 0) CHECK_EQ(disk->Flush(), 0);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  follower.Stop();
  CHECK(Same(follower.copy(), ImageOf(disk)));
  const DiskStats stats = disk->stats();
  CHECK(stats.writes > 900 && stats.zeros > 100 && stats.trims > 100 && stats.flushes > 20);
  CHECK_EQ(stats.errors, 0);
  CHECK_EQ(stats.ring_used_bytes, 0);
  CHECK_EQ(stats.flags, kDiskLogging | kDiskActive);
  Bytes read(4096);
  CHECK_EQ(disk->Read(read, 12'345), 0);
  CHECK(std::memcmp(read.data(), follower.copy().data() + 12'345, read.size()) == 0);
  CHECK_OK(disk->Close());
  CHECK(::access(disk.ring_path().c_str(), F_OK) != 0);
}

TEST("disk: zeros stay allocated, trims are holes, and the log says which") {
  Disk disk;
  std::vector<RecordKind> kinds;
  LogFollower follower(disk.ring_path(), [&](const RecordHeader& header, std::span<const std::byte>) {
    kinds.push_back(header.kind);
  });
  CHECK_OK(disk->StartLog());
  follower.Start();
  constexpr uint64_t kPart = 1 << 20;
  const auto hole_at = [&](uint64_t offset) { return disk->image().ExtentAt(offset).value().hole; };
  CHECK_EQ(disk->Write(Filled(4 * kPart, 9), 0, false), 0);
  CHECK_EQ(disk->Zero(0, kPart, false, false, false), 0);
  CHECK_EQ(disk->Zero(kPart, kPart, true, true, false), 0);
  CHECK_EQ(disk->Trim(2 * kPart, kPart, true), 0);
  CHECK(hole_at(kPart) && hole_at(2 * kPart) && !hole_at(3 * kPart) && hole_at(4 * kPart));
  CHECK_EQ(disk->image().ExtentAt(4 * kPart).value().end, kImageBytes);
  follower.Stop();
  CHECK(std::vector(kinds.end() - 3, kinds.end()) ==
        (std::vector{RecordKind::kZero, RecordKind::kTrim, RecordKind::kTrim}));
  CHECK(Same(follower.copy(), ImageOf(disk)));
}

TEST("disk: flushes during a stop are answered at once and paid, and only while there is a log") {
  Disk disk;
  const auto ring = Ring::Open(disk.ring_path());
  CHECK_OK(ring);
  RingHeader& shared = ring.value().header();
  ring.value().SetStopPending(true);
  CHECK_EQ(disk->Flush(), 0);
  CHECK_EQ(disk->stats().flushes_early, 0);  // nobody is there to take it back
  CHECK_OK(disk->StartLog());
  ring.value().SetStopPending(true);
  CHECK_EQ(disk->Flush(), 0);
  CHECK_EQ(disk->Write(Filled(512, 1), 0, true), 0);
  CHECK_EQ(disk->stats().flushes_early, 2);
  CHECK_EQ(shared.flushes_owed.load(), 2);
  Await("paid", [&] { return shared.flushes_paid.load() == 2; });
  disk->StopLog();
  CHECK_EQ(shared.stop_pending.load(), 0u);
  CHECK_EQ(disk->Flush(), 0);
  CHECK_EQ(disk->stats().flushes_early, 2);
  CHECK_EQ(disk->stats().flushes, 4);
}

TEST("disk: a standby reads, and its writers wait until it is made active, or ends") {
  Disk disk(false);
  const Descriptor image(::open((disk.dir / "image").c_str(), O_WRONLY));
  const Bytes applied = Filled(4096, 4);
  CHECK(::pwrite(image.get(), applied.data(), applied.size(), 0) == 4096);
  Bytes read(4096);
  CHECK_EQ(disk->Read(read, 0), 0);
  CHECK(read == applied);
  CHECK_EQ(disk->Flush(), 0);
  CHECK_ERROR(disk->StartLog(), ErrorCode::kSyscall, "standby");
  CHECK_ERROR(disk->RotateMap(), ErrorCode::kSyscall, "standby");
  CHECK(::access((disk.dir / "map").c_str(), F_OK) != 0);  // the store's, until then
  std::atomic<bool> written{false};
  std::thread writer([&] {
    CHECK_EQ(disk->Write(Filled(4096, 5), 0, false), 0);
    written = true;
  });
  {
    // The backup's store still has the disk.
    auto store = ImageFile::Open(disk.dir / "image");
    CHECK_OK(store);
    CHECK_OK(store.value().Lock());
    const Status refused = disk->Activate();
    CHECK_ERROR(refused, ErrorCode::kSyscall, "in use");
    CHECK_EQ(refused.error().sys_errno, EBUSY);
  }
  CHECK(!written);
  CHECK_OK(disk->Activate());
  writer.join();
  CHECK_OK(disk->Activate());  // again: it is
  CHECK(disk->active());
  CHECK(ImageOf(disk)[0] == std::byte{5});

  Disk other(false);
  std::thread never([&] { CHECK_EQ(other->Write(Filled(512, 5), 0, false), ESHUTDOWN); });
  Await("the write to come", [&] { return other->stats().writes == 1; });
  CHECK_OK(other->Close());
  never.join();
}

TEST("disk: at its end it waits for what has begun, and begins nothing more") {
  Disk disk;
  CHECK_OK(disk->StartLog());
  std::thread begun([&] { CHECK_EQ(disk->Write(Filled(3 << 20, 2), 0, false), 0); });
  Await("the writer waits for room", [&] { return disk->stats().flags & kDiskStalled; });
  CHECK_OK(disk->Close());
  begun.join();
  CHECK_EQ(disk->Write(Filled(512, 3), 0, false), ESHUTDOWN);
  CHECK_EQ(disk->Zero(0, 512, false, false, true), ESHUTDOWN);
  CHECK_EQ(disk->Trim(0, 512, false), ESHUTDOWN);
  CHECK_EQ(disk->Flush(), ESHUTDOWN);
  const Bytes image = ImageOf(disk);
  CHECK(image[0] == std::byte{2} && image[(3 << 20) - 1] == std::byte{2});
}

TEST("disk: one active server per image, which leaves the running one's ring alone") {
  Disk disk;
  CHECK_OK(disk->StartLog());
  const auto second = disk.OpenServer(true);
  CHECK_ERROR(second, ErrorCode::kSyscall, "in use by another process");
  CHECK_EQ(second.error().sys_errno, EBUSY);
  LogFollower follower(disk.ring_path());
  follower.Start();
  CHECK_EQ(disk->Write(Filled(512, 1), 0, false), 0);
  follower.Stop();
  CHECK_EQ(follower.records(), 1);
  disk.Kill();
  CHECK_OK(disk.OpenServer(true));
}

TEST("disk: not without what a backup has committed and not applied") {
  Disk disk;
  CHECK_OK(disk->Close());
  disk.Kill();
  const auto journal = [&disk](JournalState state, uint64_t applied_lsn) {
    auto file = DiskFile::Create(disk.dir / "journal", Journal::FileBytes(1 << 20));
    CHECK_OK(file);
    RecordHeader record = MakeRecord(RecordKind::kTrim, 0, 0, 4096, {});
    CHECK_OK(file.value()->Write(Journal::kCircleOffset, std::as_bytes(std::span(&record, 1))));
    const JournalSlot slot{.round = 1,
                           .state = state,
                           .epoch = 3,
                           .applied_lsn = applied_lsn,
                           .committed_lsn = RecordBytes(RecordKind::kTrim, 4096)};
    CHECK_OK(Journal::Format(*file.value(), kImageBytes, slot));
  };
  const auto refused = [](const Status& status) {
    CHECK_ERROR(status, ErrorCode::kDisk, "start `holdfast backup` on this host once");
    CHECK_EQ(status.error().sys_errno, EBUSY);
  };
  const uint64_t end = RecordBytes(RecordKind::kTrim, 4096);
  journal(JournalState::kReplica, 0);
  const auto active = disk.OpenServer(true);
  CHECK(!active.ok());
  refused(active.error());
  {
    auto standby = disk.OpenServer(false);
    CHECK_OK(standby);
    standby.value()->Begin();
    refused(standby.value()->Activate());
    journal(JournalState::kMerging, end);
    refused(standby.value()->Activate());
    // It has let go of the image: the backup applies, and then it can be had.
    {
      auto store = ImageFile::Open(disk.dir / "image");
      CHECK_OK(store);
      CHECK_OK(store.value().Lock());
    }
    journal(JournalState::kReplica, end);
    CHECK_OK(standby.value()->Activate());
    CHECK_OK(standby.value()->Close());
  }
  journal(JournalState::kRetired, 0);
  CHECK_OK(disk.OpenServer(true));
}

TEST("disk: a rotation does not overtake a write that is not in the log yet") {
  Disk disk;
  CHECK_OK(disk->ClearMap());
  const auto ring = Ring::Open(disk.ring_path());
  CHECK_OK(ring);
  CHECK_OK(disk->StartLog());
  CHECK_EQ(disk->Write(Filled(1 << 20, 1), 0, false), 0);
  std::thread writer([&] { CHECK_EQ(disk->Write(Filled(1 << 20, 2), 4 << 20, false), 0); });
  Await("the writer waits for room", [&] { return disk->stats().flags & kDiskStalled; });
  // Both are marked; the first one's mark goes with the second rotation, the
  // second one's stays, for it has no record.
  CHECK_EQ(disk->stats().marked_blocks, 32);
  CHECK_EQ(disk->RotateMap().value(), 32);
  CHECK_EQ(disk->RotateMap().value(), 16);
  CHECK_EQ(disk->RotateMap().value(), 16);
  CHECK_EQ(disk->ClearMap().value(), 16);
  ring.value().Free(ring.value().header().head.load());
  writer.join();
  CHECK_EQ(disk->RotateMap().value(), 16);
  CHECK_EQ(disk->RotateMap().value(), 0);
}

TEST("disk: a write that failed is answered with its errno, not logged, and stays marked") {
  Disk disk;
  CHECK_OK(disk->ClearMap());
  LogFollower follower(disk.ring_path());
  CHECK_OK(disk->StartLog());
  follower.Start();
  // No file of this process may grow past 4 MiB; with SIGXFSZ ignored that is an errno.
  rlimit before{};
  CHECK(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{4 << 20, before.rlim_max};
  CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  CHECK_EQ(disk->Write(Filled(8192, 1), 6 << 20, false), EFBIG);
  CHECK_EQ(disk->Write(Filled(8192, 1), 1 << 20, false), 0);
  CHECK(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK_EQ(disk->RotateMap().value(), 2);
  CHECK_EQ(disk->RotateMap().value(), 1);
  CHECK_EQ(disk->RotateMap().value(), 1);
  CHECK_EQ(disk->ClearMap().value(), 1);
  follower.Stop();
  CHECK_EQ(follower.records(), 1);
  const DiskStats stats = disk->stats();
  CHECK_EQ(stats.errors, 1);
  CHECK_EQ(stats.last_errno, static_cast<uint32_t>(EFBIG));
}

TEST("disk: marks and sync id outlive a server that is killed; one that ends closes its map") {
  Disk disk;
  SyncId id;
  id.fill(std::byte{6});
  CHECK_OK(disk->ClearMap());
  CHECK_OK(disk->SetSyncId(id));
  CHECK_EQ(disk->Write(Filled(512, 1), 3 * kMapBlockBytes, false), 0);
  disk.Kill();
  const auto clean = [&] {
    const Bytes map = ReadFile(disk.dir / "map");
    return static_cast<int>(map[offsetof(MapHeader, clean)]);
  };
  CHECK_EQ(clean(), 0);
  {
    const auto map = DiskMap::Open(disk.dir / "map", kImageBytes, DiskMap::Mode::kRead);
    CHECK_OK(map);
    CHECK(map.value().trusted() && map.value().IsMarked(3) && map.value().sync_id() == id);
    CHECK_EQ(map.value().MarkedBlocks(), 1);
  }
  auto server = disk.OpenServer(true);
  CHECK_OK(server);
  server.value()->Begin();
  CHECK_OK(server.value()->Close());
  CHECK_EQ(clean(), 1);
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
