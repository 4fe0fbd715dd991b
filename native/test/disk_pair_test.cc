// Both hosts' sides of the disks together: disk servers with writing guests, the
// shipper, the receiver and the store, over TCP; outages of every kind, and what
// a synchronisation of changes makes of them.

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <deque>

#include "test/ship_lab.h"
#include "test/store_lab.h"

namespace holdfast::test {
namespace {

using Type = DiskStore::Event::Type;
constexpr uint64_t kBytesA = (6 << 20) + 512 * 77;
constexpr uint64_t kBytesB = 1 << 20;
// Guests write as fast as memory is, and this process may wait for its turn.
constexpr uint64_t kJournalBytes = 64 << 20;

// The primary's host: two disks, three guests.
struct Host {
  explicit Host(const TempDir& dir, uint64_t seed)
      : random(seed),
        a(dir, "pa", RandomBytes(random, kBytesA)),
        b(dir, "pb", Bytes(kBytesB)),
        guests{{a, seed + 1}, {a, seed + 2}, {b, seed + 3}} {
    Stop();
  }
  void Stop() {
    for (Guest& guest : guests) guest.Stop();
  }
  void Continue() {
    for (Guest& guest : guests) guest.Continue();
  }
  void StopLogs() {
    a->StopLog();
    b->StopLog();
  }
  Random random;
  TestDisk a;
  TestDisk b;
  Guest guests[3];
};

// A primary's daemon: one connection, from the plan to the loss.
class Daemon {
 public:
  Daemon(Host& host, uint16_t port, uint8_t token) : host_(host), ram_(kTestRamBytes / 4096, 4096) {
    const EpochWriter::Hello hello{Token(token), 4096, kTestRamBytes};
    auto writer = ConnectWriter(port, hello, Strategy::kCopy, cancel_);
    CHECK_OK(writer);
    writer_ = std::move(writer).value();
    const DiskLink::Peer peer{.host = "127.0.0.1",
                              .port = port,
                              .token = Token(token),
                              .page_size = 4096,
                              .ram_bytes = kTestRamBytes,
                              .link = writer_->link(),
                              .streams = 1,
                              .timeout_ms = kDeadlineMs};
    const std::vector<Shipper::Disk> disks{Named(host.a, "a"), Named(host.b, "b")};
    auto shipper = Shipper::Connect(disks, peer, cancel_, [this] {
      writer_->Interrupt();
      host_.StopLogs();
    });
    CHECK_OK(shipper);
    shipper_ = std::move(shipper).value();
  }
  ~Daemon() { host_.StopLogs(); }

  // As lib/primary plans it: changes, where both sides know them all.
  bool Sync(uint8_t id) {
    bool changes_only = true;
    std::vector<Shipper::Plan> plans;
    for (const Shipper::Difference& disk : shipper_->differences()) {
      const bool known = disk.local_trusted && disk.peer.trusted &&
                         disk.local_sync_id == disk.peer.sync_id && disk.local_sync_id != SyncId{};
      plans.push_back({disk.peer.id, known ? DiskPlan::What::kChanged : DiskPlan::What::kAll});
      changes_only = changes_only && known;
    }
    CHECK_OK(host_.a->StartLog());
    CHECK_OK(host_.b->StartLog());
    auto synced = shipper_->Sync(plans, IdOf(id));
    CHECK_OK(synced);
    id_ = id;
    return changes_only;
  }
  struct Epoch {
    Status acknowledged;
    std::vector<Bytes> images;
  };
  // A guest may wait for room just now, which only this epoch's commit gives it:
  // the half of the ring that is kept free is for its last writes.
  void Stop() {
    shipper_->shipped()->SetStopPending(true);
    host_.Stop();
    shipper_->shipped()->SetStopPending(false);
  }
  Epoch Take(uint64_t number) {
    Stop();
    if (const auto error = shipper_->error()) Fail(__FILE__, __LINE__, error->message);
    auto heads = shipper_->Heads();
    CHECK_OK(heads);
    Epoch epoch{{}, {host_.a.Content(), host_.b.Content()}};
    host_.Continue();
    shipper_->MarkBoundary(number, heads.value());
    epoch.acknowledged = SendEpoch(*writer_, ram_, {}, number, Bytes(100, std::byte{1}));
    if (epoch.acknowledged.ok() && std::exchange(first_, false)) {
      CHECK_OK(host_.a->SetSyncId(IdOf(id_)));
      CHECK_OK(host_.b->SetSyncId(IdOf(id_)));
    }
    // The first forgets what was marked before the epoch began, the second what
    // was marked before this one.
    if (epoch.acknowledged.ok()) {
      CHECK_OK(host_.a->RotateMap());
      CHECK_OK(host_.b->RotateMap());
    }
    return epoch;
  }

 private:
  static Shipper::Disk Named(const TestDisk& disk, const char* id) {
    Shipper::Disk described = disk.described();
    described.id = id;
    return described;
  }

  Host& host_;
  CancelSignal cancel_;
  GuestRam ram_;
  std::unique_ptr<EpochWriter> writer_;
  std::unique_ptr<Shipper> shipper_;  // after the writer, which its end interrupts
  uint8_t id_ = 0;
  bool first_ = true;
};

std::vector<DiskStore::Disk> Replicas(const TempDir& dir) {
  return {Store::Describe(dir, "a", kBytesA, kJournalBytes),
          Store::Describe(dir, "b", kBytesB, kJournalBytes)};
}

void CheckReplicas(const TempDir& dir, const std::vector<Bytes>& images) {
  CHECK(Same(ReadFile(dir / "a.img"), images[0]));
  CHECK(Same(ReadFile(dir / "b.img"), images[1]));
}

TEST("under writing guests each epoch's replica is the image at its boundary") {
  const TempDir dir;
  Host host(dir, 1);
  Store store(Replicas(dir));
  store.MustOpen();
  Generation generation(dir, store, 7);
  Daemon daemon(host, generation.port(), 7);
  host.Continue();
  CHECK(!daemon.Sync(1));
  for (uint64_t epoch = 1; epoch <= 20; epoch++) {
    ::usleep(static_cast<useconds_t>(host.random() % 10'000));
    const Daemon::Epoch taken = daemon.Take(epoch);
    CHECK_OK(taken.acknowledged);
    store.Await(Type::kApplied, epoch);
    CheckReplicas(dir, taken.images);
  }
}

TEST("after outages only changes travel, and the replica is right each time") {
  const TempDir dir;
  Host host(dir, 2);
  Store store(Replicas(dir));
  store.MustOpen();
  uint8_t session = 0;
  size_t changes_only = 0;
  for (int outage = 0; outage < 6; outage++) {
    session++;
    Generation newer(dir, store, session);
    std::vector<Bytes> images;
    {
      Daemon daemon(host, newer.port(), session);
      host.Continue();
      if (daemon.Sync(session)) changes_only++;
      // One that fails before its first commit.
      for (uint64_t epoch = 1; epoch <= static_cast<uint64_t>(outage % 3) * 3; epoch++) {
        const Daemon::Epoch taken = daemon.Take(epoch);
        CHECK_OK(taken.acknowledged);
        images = taken.images;
      }
      daemon.Stop();
    }
    if (!images.empty()) {
      store.Await(Type::kApplied, 3);
      CHECK_OK(newer.backup->Fence());
      CheckReplicas(dir, images);
    }
    // What the guests write while nobody protects them.
    host.Continue();
    ::usleep(5'000);
    host.Stop();
    if (outage == 3) {
      CHECK_OK(store->Close());
      store.MustOpen();
    }
  }
  CHECK(changes_only >= 3);
}

// A process with a backup of its own. Made before there is any thread, and told
// later to begin: a process with threads cannot fork one that makes more.
class BackupProcess {
 public:
  BackupProcess(const TempDir& dir, uint8_t life) {
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_) == 0);
    child_ = ::fork();
    CHECK(child_ >= 0);
    if (child_ == 0) Run(dir, life);
  }
  BackupProcess(const BackupProcess&) = delete;
  BackupProcess& operator=(const BackupProcess&) = delete;
  ~BackupProcess() {
    Kill();
    for (const int end : ends_) ::close(end);
  }

  uint16_t Begin() {
    CHECK(::write(ends_[0], "b", 1) == 1);
    uint16_t port = 0;
    CHECK(::read(ends_[0], &port, sizeof port) == sizeof port);
    return port;
  }
  void Kill() {
    if (child_ < 0) return;
    CHECK(::kill(child_, SIGKILL) == 0);
    CHECK(::waitpid(child_, nullptr, 0) == child_);
    child_ = -1;
  }

 private:
  [[noreturn]] void Run(const TempDir& dir, uint8_t life) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(ends_[0]);
    char begin = 0;
    if (::read(ends_[1], &begin, 1) != 1) ::_exit(0);
    Store store(Replicas(dir));
    store.MustOpen();
    Generation generation(dir, store, life);
    const uint16_t port = generation.port();
    CHECK(::write(ends_[1], &port, sizeof port) == sizeof port);
    for (;;) ::pause();
  }

  int ends_[2];
  pid_t child_ = -1;
};

TEST("a backup killed right after an acknowledgement: nothing of it is missing in the next") {
  const TempDir dir;
  std::deque<BackupProcess> backups;
  for (uint8_t life = 1; life <= 8; life++) backups.emplace_back(dir, life);
  Host host(dir, 3);
  size_t changes_only = 0;
  for (uint8_t life = 1; life <= 8; life++) {
    BackupProcess& backup = backups[life - 1];
    const uint16_t port = backup.Begin();
    std::vector<std::vector<Bytes>> images;
    {
      Daemon daemon(host, port, life);
      host.Continue();
      if (daemon.Sync(life)) changes_only++;
      const uint64_t epochs = 1 + host.random() % 12;
      for (uint64_t epoch = 1; epoch <= epochs; epoch++) {
        const Daemon::Epoch taken = daemon.Take(epoch);
        CHECK_OK(taken.acknowledged);
        images.push_back(taken.images);
        // So that there is a durable one to go back to, sometimes.
        if (host.random() % 4 == 0) ::usleep(20'000);
      }
      backup.Kill();
      host.Stop();
    }
    Store store(Replicas(dir));
    const auto opened = store.MustOpen();
    const uint64_t epoch = opened[0].committed_epoch;
    CHECK_EQ(opened[1].committed_epoch, epoch);
    CHECK(opened[0].trusted);
    if (epoch > 0 && epoch <= images.size() && opened[0].sync_id == IdOf(life)) {
      CheckReplicas(dir, images[epoch - 1]);
    }
    CHECK_OK(store->Close());
  }
  CHECK(changes_only >= 1);
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
