// The backup's disks behind a real receiver: what is committed when, what stands
// after a failure, and who may have the images.

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "test/store_lab.h"

namespace holdfast::test {
namespace {

using Type = DiskStore::Event::Type;
constexpr uint64_t kImageBytes = (1 << 20) + 4096 * 3 + 512;
constexpr uint64_t kOtherBytes = 300 * 4096;
constexpr auto kChanged = DiskPlan::What::kChanged;

void CheckImages(const TempDir& dir, const std::vector<Bytes>& expected) {
  const char* const names[] = {"a", "b"};
  for (size_t i = 0; i < expected.size(); i++) {
    CHECK(Same(ReadFile(dir / (std::string(names[i]) + ".img")), expected[i]));
  }
}

struct TwoDisks {
  TempDir dir;
  Store store{{Store::Describe(dir, "a", kImageBytes), Store::Describe(dir, "b", kOtherBytes)}};
  Random random{1};
  static inline const std::vector<uint64_t> kSizes{kImageBytes, kOtherBytes};
};

TEST("two disks: base beside writes, then each epoch is in the images, and no more than it") {
  TwoDisks two;
  const auto opened = two.store.MustOpen();
  CHECK_EQ(opened.size(), size_t{2});
  CHECK(opened[0].fresh && !opened[0].recovered && opened[0].committed_epoch == 0);
  Generation generation(two.dir, two.store, 7);
  ScriptedPrimary primary(generation.port(), 7, TwoDisks::kSizes);
  CHECK(primary.states()[0].fresh);
  for (size_t disk = 0; disk < 2; disk++) {
    primary.image(disk) = RandomBytes(two.random, TwoDisks::kSizes[disk]);
    std::fill_n(primary.image(disk).begin() + 200'000, 300'000, std::byte{0});
  }
  CHECK_OK(primary.StartSync());
  for (uint64_t at = 0; at < kImageBytes; at += kDiskBlockBytes) {
    primary.Scribble(two.random, 3);
    CHECK_OK(primary.SendLogs());
    CHECK_OK(primary.SendBase(0, at, std::min(kDiskBlockBytes, kImageBytes - at)));
  }
  CHECK_OK(primary.SendBase(1));
  CHECK_OK(primary.FinishSync(IdOf(5)));
  for (uint64_t epoch = 1; epoch <= 40; epoch++) {
    primary.Scribble(two.random, two.random() % 6, 200'000);
    CHECK_OK(primary.SendLogs());
    const std::vector<uint64_t> lsns = primary.Lsns();
    const std::vector<Bytes> images = primary.images();
    // Of the next epoch, before this one's boundary, even part of a record.
    primary.Scribble(two.random, 2);
    CHECK_OK(primary.SendLog(0, two.random() % 30'000));
    CHECK_OK(primary.SendBoundary(epoch, lsns));
    CHECK_OK(primary.SendPages(epoch));
    CHECK_OK(primary.AwaitAck(epoch));
    two.store.Await(Type::kApplied, epoch);
    CheckImages(two.dir, images);
    if (epoch == 40) {
      auto fenced = generation.backup->Fence();
      CHECK_OK(fenced);
      CHECK_EQ(fenced.value().epoch, uint64_t{40});
      CheckImages(two.dir, images);
      CHECK_OK(two.store->Retire());
      CHECK_OK(two.store->Retire());
      CheckImages(two.dir, images);
      // The servers may write now, and these journals say nothing of it.
      auto image = ImageFile::Open(two.dir / "a.img");
      CHECK_OK(image);
      CHECK_OK(image.value().Lock());
      auto map = DiskMap::Open(two.dir / "a.meta/map", kImageBytes, DiskMap::Mode::kActive);
      CHECK_OK(map);
      CHECK(map.value().trusted() && map.value().sync_id() == IdOf(5));
      CHECK_EQ(map.value().MarkedBlocks(), uint64_t{0});
    }
  }
  CHECK(two.store.Count(Type::kDurable) > 0);
  CHECK_EQ(two.store.Count(Type::kFault), size_t{0});
}

TEST("an epoch is acknowledged when both its pages and its boundary are there, in either order") {
  TwoDisks two;
  two.store.MustOpen();
  Generation generation(two.dir, two.store, 7);
  ScriptedPrimary primary(generation.port(), 7, TwoDisks::kSizes);
  CHECK_OK(primary.SyncAll(IdOf(5)));
  primary.Scribble(two.random, 4);
  CHECK_OK(primary.SendPages(1));
  auto word = primary.writer().AwaitWord(100);
  CHECK_OK(word);
  CHECK(!word.value());
  CHECK_OK(primary.SendLogs());
  CHECK_OK(primary.SendBoundary(1, primary.Lsns()));
  CHECK_OK(primary.AwaitAck(1));
  // The other way round.
  primary.Scribble(two.random, 4);
  CHECK_OK(primary.SendLogs());
  CHECK_OK(primary.SendBoundary(2, primary.Lsns()));
  ::usleep(50'000);
  CHECK_EQ(generation.backup.Count(ReceiverEvent::Type::kCommitted), size_t{1});
  CHECK_OK(primary.SendPages(2));
  CHECK_OK(primary.AwaitAck(2));
}

TEST("fenced between pages and boundary: the epoch before is what the images have") {
  for (const bool pages_first : {false, true}) {
    TwoDisks two;
    two.store.MustOpen();
    Generation generation(two.dir, two.store, 7);
    ScriptedPrimary primary(generation.port(), 7, TwoDisks::kSizes);
    CHECK_OK(primary.SyncAll(IdOf(5)));
    primary.Scribble(two.random, 8);
    CHECK_OK(primary.SendEpoch(1));
    const std::vector<Bytes> images = primary.images();
    primary.Scribble(two.random, 8);
    CHECK_OK(primary.SendLogs());
    if (pages_first) {
      CHECK_OK(primary.SendPages(2));
    } else {
      CHECK_OK(primary.SendBoundary(2, primary.Lsns()));
    }
    ::usleep(20'000);
    auto fenced = generation.backup->Fence();
    CHECK_OK(fenced);
    CHECK_EQ(fenced.value().epoch, uint64_t{1});
    CheckImages(two.dir, images);
    const Status acknowledged = pages_first ? primary.AwaitAck(2) : primary.SendEpoch(2);
    CHECK(!acknowledged.ok());
    CHECK_OK(two.store->Retire());
    CheckImages(two.dir, images);
    CHECK_ERROR(two.store->Open(), ErrorCode::kDisk, "running VM");
  }
}

TEST("the log is looked at: digests, records, boundaries, order") {
  struct Case {
    ErrorCode code;
    const char* text;
    std::function<void(ScriptedPrimary&)> act;
  };
  const auto payload = [](ScriptedPrimary& primary, uint64_t lsn, Bytes record) {
    const auto head = EncodeDiskLog({0, lsn});
    record.insert(record.begin(), head.begin(), head.end());
    CHECK_OK(primary.link().Send(FrameType::kDiskLog, 0, record));
  };
  const auto record = [](uint64_t lsn, uint64_t offset) {
    const Bytes data(512, std::byte{9});
    const RecordHeader header = MakeRecord(RecordKind::kWrite, lsn, offset, data.size(), data);
    Bytes bytes(sizeof header + data.size());
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + sizeof header, data.data(), data.size());
    return bytes;
  };
  const std::vector<Case> cases = {
      {ErrorCode::kChecksum, "digest",
       [&](ScriptedPrimary& primary) {
         Bytes bytes = record(primary.lsn(0), 0);
         bytes[300] ^= std::byte{1};
         payload(primary, primary.lsn(0), bytes);
       }},
      {ErrorCode::kProtocol, "no record at LSN",
       [&](ScriptedPrimary& primary) { payload(primary, primary.lsn(0), Bytes(100)); }},
      {ErrorCode::kProtocol, "beyond the disk's end",
       [&](ScriptedPrimary& primary) {
         payload(primary, primary.lsn(0), record(primary.lsn(0), kImageBytes - 511));
       }},
      {ErrorCode::kProtocol, "lies within a record",
       [&](ScriptedPrimary& primary) {
         payload(primary, primary.lsn(0), record(primary.lsn(0), 0));
         CHECK_OK(primary.SendBoundary(2, {primary.lsn(0) + 48, primary.lsn(1)}));
       }},
      {ErrorCode::kProtocol, "two boundaries",
       [&](ScriptedPrimary& primary) {
         CHECK_OK(primary.SendBoundary(2, primary.Lsns()));
         CHECK_OK(primary.SendBoundary(3, primary.Lsns()));
       }},
  };
  for (const Case& wrong : cases) {
    TwoDisks two;
    two.store.MustOpen();
    Generation generation(two.dir, two.store, 7);
    ScriptedPrimary primary(generation.port(), 7, TwoDisks::kSizes);
    CHECK_OK(primary.SyncAll(IdOf(5)));
    CHECK_OK(primary.SendEpoch(1));
    const std::vector<Bytes> images = primary.images();
    wrong.act(primary);
    const Error error = primary.AwaitDiskError();
    if (error.code != wrong.code || error.message.find(wrong.text) == std::string::npos) {
      Fail(__FILE__, __LINE__, std::string("expected ") + wrong.text + ", got " + error.message);
    }
    CHECK_OK(generation.backup->Fence());
    CheckImages(two.dir, images);
  }
}

TEST("an epoch before the disks are synchronised, a disk stream without disks: refused") {
  TwoDisks two;
  two.store.MustOpen();
  {
    Generation generation(two.dir, two.store, 7);
    ScriptedPrimary primary(generation.port(), 7, TwoDisks::kSizes);
    CHECK_OK(primary.StartSync());
    (void)primary.SendPages(1);
    CHECK_ERROR(primary.AwaitAck(1), ErrorCode::kProtocol, "before the disks are synchronised");
  }
  Backup backup;
  CHECK_OK(backup->OpenSession(Backup::SessionFor(two.dir / "ram", kTestRamBytes)));
  ScriptedPrimary primary(backup->port(), 7, TwoDisks::kSizes, false);
  const CancelSignal cancel;
  const DiskLink::Peer peer{.host = "127.0.0.1",
                            .port = backup->port(),
                            .token = Token(7),
                            .page_size = 4096,
                            .ram_bytes = kTestRamBytes,
                            .link = primary.writer().link(),
                            .streams = 1,
                            .timeout_ms = kDeadlineMs};
  CHECK_ERROR(DiskLink::Connect(peer, cancel), ErrorCode::kProtocol, "no disks");
}

TEST("a newer session syncs aside: the older checkpoint stands until its first commit") {
  for (const bool commits : {false, true}) {
    TwoDisks two;
    two.store.MustOpen();
    Generation older(two.dir, two.store, 7);
    std::vector<Bytes> images;
    {
      ScriptedPrimary primary(older.port(), 7, TwoDisks::kSizes);
      primary.Scribble(two.random, 20);
      CHECK_OK(primary.SyncAll(IdOf(5)));
      primary.Scribble(two.random, 20);
      CHECK_OK(primary.SendEpoch(1));
      images = primary.images();
      primary.Scribble(two.random, 5);
      CHECK_OK(primary.SendLogs());  // never committed
    }
    Generation newer(two.dir, two.store, 8);
    ScriptedPrimary primary(newer.port(), 8, TwoDisks::kSizes);
    for (size_t disk = 0; disk < 2; disk++) primary.image(disk) = images[disk];
    // Small pieces: blocks of which only a part is written keep the rest.
    CHECK_OK(primary.StartSync(kChanged, 1 << 16));
    primary.Scribble(two.random, 60, 3'000);
    CHECK_OK(primary.SendLogs());
    CHECK_OK(primary.SendBase(1, kDiskBlockBytes, kDiskBlockBytes));
    CHECK_OK(primary.FinishSync(IdOf(6)));
    primary.Scribble(two.random, 10);
    CHECK_OK(primary.SendLogs());
    CheckImages(two.dir, images);
    if (!commits) {
      auto fenced = older.backup->Fence();
      CHECK_OK(fenced);
      CHECK_EQ(fenced.value().epoch, uint64_t{1});
      const Error error = primary.AwaitDiskError();
      CHECK(error.code == ErrorCode::kFenced);
      CHECK_OK(two.store->Retire());
      CheckImages(two.dir, images);
      continue;
    }
    CHECK_OK(primary.SendEpoch(1));
    images = primary.images();
    CHECK_ERROR(older.backup->Fence(), ErrorCode::kFenced, "newer session has committed");
    primary.Scribble(two.random, 10);
    CHECK_OK(primary.SendEpoch(2));
    images = primary.images();
    auto fenced = newer.backup->Fence();
    CHECK_OK(fenced);
    CHECK_EQ(fenced.value().epoch, uint64_t{2});
    CheckImages(two.dir, images);
    CHECK_EQ(two.store.Count(Type::kMerged), size_t{1});
    CHECK_OK(two.store->Retire());
    CHECK(::access((two.dir / "a.meta/aside").c_str(), F_OK) != 0);
  }
}

TEST("a newer session takes the disks from one that is still connected") {
  TwoDisks two;
  two.store.MustOpen();
  Generation older(two.dir, two.store, 7);
  ScriptedPrimary first(older.port(), 7, TwoDisks::kSizes);
  CHECK_OK(first.SyncAll(IdOf(5)));
  CHECK_OK(first.SendEpoch(1));
  Generation newer(two.dir, two.store, 8);
  ScriptedPrimary second(newer.port(), 8, TwoDisks::kSizes);
  CHECK(first.AwaitDiskError().code == ErrorCode::kFenced);
  second.Scribble(two.random, 20);
  CHECK_OK(second.SyncAll(IdOf(6)));
  CHECK_OK(second.SendEpoch(1));
  CHECK_OK(newer.backup->Fence());
  CheckImages(two.dir, second.images());
}

TEST("closed and opened: the same epoch, the sync id, marks of what was not committed") {
  TwoDisks two;
  two.store.MustOpen();
  std::vector<Bytes> images;
  {
    Generation generation(two.dir, two.store, 7);
    ScriptedPrimary primary(generation.port(), 7, TwoDisks::kSizes);
    CHECK_OK(primary.SyncAll(IdOf(5)));
    for (uint64_t epoch = 1; epoch <= 3; epoch++) {
      primary.Scribble(two.random, 20);
      CHECK_OK(primary.SendEpoch(epoch));
    }
    images = primary.images();
    primary.Write(0, 5 * kDiskBlockBytes, Bytes(512, std::byte{3}));
    CHECK_OK(primary.SendLogs());
    two.store.Await(Type::kDurable, 3);
    const auto stats = two.store->stats();
    CHECK_EQ(stats[0].committed_epoch, uint64_t{3});
    CHECK(stats[0].received_bytes > 0 && stats[0].base_bytes == 0);
  }
  CHECK_OK(two.store->Close());
  CHECK_OK(two.store->Close());
  CheckImages(two.dir, images);
  const auto opened = two.store.MustOpen();
  CHECK_EQ(opened[1].committed_epoch, uint64_t{3});
  CHECK(opened[0].sync_id == IdOf(5) && opened[0].trusted && !opened[0].fresh);
  CHECK(opened[0].marked_bytes >= kDiskBlockBytes);
  // Other journals, the same epoch.
  CHECK_OK(two.store->Close());
  Store larger({Store::Describe(two.dir, "a", kImageBytes, 2 * kJournalBytesMin),
                Store::Describe(two.dir, "b", kOtherBytes, 3 * kJournalBytesMin)});
  CHECK_EQ(larger.MustOpen()[0].committed_epoch, uint64_t{3});
  CHECK_EQ(larger->stats()[1].journal_bytes, 3 * kJournalBytesMin);
  CheckImages(two.dir, images);
  // Changes only: they go aside although nobody has the memory to it any more.
  Generation generation(two.dir, larger, 8);
  ScriptedPrimary primary(generation.port(), 8, TwoDisks::kSizes);
  CHECK(primary.states()[0].sync_id == IdOf(5) && primary.MarkedBlocks(0) > 0);
  CHECK_OK(primary.StartSync(kChanged));
  CHECK_OK(primary.SendBase(0));
  CHECK_OK(primary.FinishSync(IdOf(6)));
  CheckImages(two.dir, images);
}

// One disk with a checkpoint of one epoch, closed; its sync id is 5.
struct OneDisk {
  OneDisk() {
    store.MustOpen();
    {
      Generation generation(dir, store, 7);
      ScriptedPrimary primary(generation.port(), 7, {kImageBytes});
      primary.image(0) = RandomBytes(random, kImageBytes);
      CHECK_OK(primary.SyncAll(IdOf(5)));
      CHECK_OK(primary.SendEpoch(1));
      store.Await(Type::kDurable, 1);
    }
    CHECK_OK(store->Close());
  }
  DiskStore::Opened Reopen() {
    CHECK_OK(store->Close());
    return store.MustOpen()[0];
  }
  std::string meta(const char* name) const { return dir / (std::string("a.meta/") + name); }

  TempDir dir;
  Random random{1};
  Store store{{Store::Describe(dir, "a", kImageBytes)}};
};

TEST("a copy of everything that was interrupted leaves a disk of no known state") {
  OneDisk one;
  CHECK(one.Reopen().sync_id == IdOf(5));
  {
    Generation generation(one.dir, one.store, 8);
    ScriptedPrimary primary(generation.port(), 8, {kImageBytes});
    CHECK(primary.states()[0].sync_id == IdOf(5));
    primary.image(0) = RandomBytes(one.random, kImageBytes);
    CHECK_OK(primary.StartSync());
    CHECK_OK(primary.SendBase(0, 0, kDiskBlockBytes));
    // The backup has written it.
    const Bytes sent(primary.image(0).begin(), primary.image(0).begin() + kDiskBlockBytes);
    Bytes image;
    for (int waited_ms = 0; image != sent; waited_ms += 10) {
      CHECK(waited_ms < kDeadlineMs);
      ::usleep(10'000);
      image = ReadFile(one.dir / "a.img");
      image.resize(kDiskBlockBytes);
    }
  }
  Generation generation(one.dir, one.store, 9);
  const ScriptedPrimary primary(generation.port(), 9, {kImageBytes});
  CHECK(primary.states()[0].sync_id == SyncId{});
  CHECK(one.Reopen().sync_id == SyncId{});
}

TEST("an image or a journal that somebody removed takes the known state with it") {
  for (const char* const removed : {"image", "journal"}) {
    OneDisk one;
    const bool image = std::string(removed) == "image";
    CHECK(::unlink(image ? (one.dir / "a.img").c_str() : one.meta("journal").c_str()) == 0);
    const auto opened = one.Reopen();
    CHECK(opened.sync_id == SyncId{} && opened.committed_epoch == 0);
    CHECK_EQ(opened.fresh, image);
    CHECK(one.Reopen().sync_id == SyncId{});
  }
  // Not where a VM has run since, whose server keeps the map.
  OneDisk one;
  {
    const Descriptor image(::open((one.dir / "a.img").c_str(), O_RDWR));
    auto map = DiskMap::Open(one.meta("map"), kImageBytes, DiskMap::Mode::kActive, image.get());
    CHECK_OK(map);
    CHECK_OK(map.value().Close());
  }
  CHECK(::unlink(one.meta("journal").c_str()) == 0);
  CHECK(one.Reopen().sync_id == IdOf(5));
}

TEST("retired once more, after the VM has run: its marks stay") {
  OneDisk one;
  one.Reopen();
  CHECK_OK(one.store->Retire());
  {
    const Descriptor image(::open((one.dir / "a.img").c_str(), O_RDWR));
    auto map = DiskMap::Open(one.meta("map"), kImageBytes, DiskMap::Mode::kActive, image.get());
    CHECK_OK(map);
    CHECK_EQ(map.value().MarkedBlocks(), uint64_t{0});
    map.value().Mark(0, 3 * kMapBlockBytes);
    CHECK_OK(map.value().Close());
  }
  Store again({Store::Describe(one.dir, "a", kImageBytes)});
  again.MustOpen();
  CHECK_OK(again->Retire());
  auto map = DiskMap::Open(one.meta("map"), kImageBytes, DiskMap::Mode::kRead);
  CHECK_OK(map);
  CHECK(map.value().trusted() && map.value().sync_id() == IdOf(5));
  CHECK_EQ(map.value().MarkedBlocks(), uint64_t{3});
}

// This process's descriptors of a file.
std::vector<int> DescriptorsOf(const std::string& path) {
  struct stat file {};
  CHECK(::stat(path.c_str(), &file) == 0);
  std::vector<int> found;
  for (int fd = 0; fd < 1024; fd++) {
    struct stat about {};
    if (::fstat(fd, &about) == 0 && about.st_dev == file.st_dev && about.st_ino == file.st_ino) found.push_back(fd);
  }
  return found;
}

TEST("retiring fails at the second disk's map, and then succeeds") {
  TwoDisks two;
  two.store.MustOpen();
  int ends[2];
  CHECK(::pipe(ends) == 0);
  const Descriptor reader(ends[0]);
  const Descriptor writer(ends[1]);
  // What cannot be synced, in the image's place.
  const std::vector<int> image = DescriptorsOf(two.dir / "b.img");
  std::vector<Descriptor> kept;
  for (const int fd : image) {
    kept.emplace_back(::dup(fd));
    CHECK(::dup2(writer.get(), fd) == fd);
  }
  CHECK_ERROR(two.store->Retire(), ErrorCode::kSyscall, "image");
  CHECK_ERROR(two.store->Open(), ErrorCode::kDisk, "running VM");
  for (size_t i = 0; i < image.size(); i++) CHECK(::dup2(kept[i].get(), image[i]) == image[i]);
  kept.clear();
  CHECK_OK(two.store->Retire());
  for (const char* const name : {"a.meta/map", "b.meta/map"}) {
    CHECK_EQ(static_cast<int>(ReadFile(two.dir / name)[offsetof(MapHeader, clean)]), 1);
  }
}

TEST("a process killed at any moment leaves a committed epoch, on both disks the same") {
  TempDir dir;
  const std::vector<DiskStore::Disk> disks = {Store::Describe(dir, "a", kImageBytes),
                                              Store::Describe(dir, "b", kOtherBytes)};
  Random random(3);
  std::map<uint64_t, std::vector<Bytes>> committed;
  uint64_t epoch = 0;
  size_t recoveries = 0;
  for (int life = 0; life < 12; life++) {
    int ends[2];
    CHECK(::pipe(ends) == 0);
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child == 0) {
      Store store(disks);
      store.MustOpen();
      Generation generation(dir, store, 7);
      const uint16_t port = generation.port();
      CHECK(::write(ends[1], &port, sizeof port) == sizeof port);
      for (;;) ::pause();
    }
    uint16_t port = 0;
    CHECK(::read(ends[0], &port, sizeof port) == sizeof port);
    {
      ScriptedPrimary primary(port, 7, TwoDisks::kSizes);
      if (life > 0) {
        for (size_t i = 0; i < 2; i++) primary.image(i) = committed.rbegin()->second[i];
      }
      // The whole image, aside or not.
      CHECK_OK(primary.SyncAll(IdOf(static_cast<uint8_t>(life + 1)),
                               life % 2 == 0 ? DiskPlan::What::kAll : kChanged));
      const double until_ms = MonotonicMs() + static_cast<double>(random() % 120);
      do {
        primary.Scribble(random, 6, 100'000);
        epoch++;
        committed[epoch] = primary.images();
        CHECK_OK(primary.SendEpoch(epoch));
      } while (MonotonicMs() < until_ms);
      CHECK(::kill(child, SIGKILL) == 0);
      CHECK(::waitpid(child, nullptr, 0) == child);
    }
    ::close(ends[0]);
    ::close(ends[1]);
    Store store(disks);
    const auto opened = store.MustOpen();
    CHECK_EQ(opened[0].committed_epoch, opened[1].committed_epoch);
    if (opened[0].recovered) recoveries++;
    CHECK(opened[0].trusted);
    if (opened[0].committed_epoch > 0) CheckImages(dir, committed[opened[0].committed_epoch]);
    CHECK_OK(store->Close());
  }
  CHECK(recoveries > 0);
}

// A tmpfs of its own: one that can be full.
class SmallDisk {
 public:
  SmallDisk(const TempDir& dir, uint64_t bytes) : path_(dir / "small") {
    CHECK(::mkdir(path_.c_str(), 0700) == 0);
    mounted_ = ::mount("holdfast", path_.c_str(), "tmpfs", 0, Size(bytes).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  void Resize(uint64_t bytes) {
    CHECK(::mount("holdfast", path_.c_str(), "tmpfs", MS_REMOUNT, Size(bytes).c_str()) == 0);
  }
  const std::string& path() const { return path_; }
  bool mounted() const { return mounted_; }

 private:
  static std::string Size(uint64_t bytes) { return "size=" + std::to_string(bytes); }
  const std::string path_;
  bool mounted_ = false;
};

TEST("a full disk under the image: told, cut, and the epoch is there once there is room") {
  TempDir dir;
  SmallDisk small(dir, 1 << 20);
  if (!small.mounted()) {
    std::printf(" – skipped: this user cannot mount a tmpfs");
    return;
  }
  DiskStore::Disk disk = Store::Describe(dir, "a", 4 << 20);
  disk.image_path = small.path() + "/a.img";
  Store store({disk});
  store.MustOpen();
  Random random(1);
  std::vector<Bytes> images;
  {
    Generation generation(dir, store, 7);
    ScriptedPrimary primary(generation.port(), 7, {disk.image_bytes});
    CHECK_OK(primary.SyncAll(IdOf(5)));
    CHECK_OK(primary.SendEpoch(1));
    primary.Write(0, 0, RandomBytes(random, 1 << 20));
    primary.Write(0, 2 << 20, RandomBytes(random, 1 << 20));
    CHECK_OK(primary.SendEpoch(2));
    images = primary.images();
    const DiskStore::Event fault = store.Await(Type::kFault);
    CHECK(fault.error.code == ErrorCode::kNoSpace && fault.id == "a");
    // At the next thing that it sends, the primary is told why.
    primary.Write(0, 0, Bytes(512));
    (void)primary.SendLogs();
    const Error error = primary.AwaitDiskError();
    CHECK(error.code == ErrorCode::kNoSpace);
    CHECK_ERROR(generation.backup->Fence(), ErrorCode::kNoSpace, "a.img");
    small.Resize(16 << 20);
    CHECK_OK(store->Open());
    auto fenced = generation.backup->Fence();
    CHECK_OK(fenced);
    CHECK_EQ(fenced.value().epoch, uint64_t{2});
    CHECK(Same(ReadFile(disk.image_path), images[0]));
  }
  CHECK_OK(store->Close());
  CHECK_EQ(store.MustOpen()[0].committed_epoch, uint64_t{2});
  CHECK(Same(ReadFile(disk.image_path), images[0]));
}

TEST("a full disk under the aside: the new session is told, the old checkpoint stands") {
  TempDir dir;
  SmallDisk small(dir, kJournalBytesMin + (2 << 20));
  if (!small.mounted()) {
    std::printf(" – skipped: this user cannot mount a tmpfs");
    return;
  }
  DiskStore::Disk disk = Store::Describe(dir, "a", 8 << 20);
  disk.meta_dir = small.path();
  Store store({disk});
  store.MustOpen();
  Random random(1);
  Generation older(dir, store, 7);
  ScriptedPrimary first(older.port(), 7, {disk.image_bytes});
  first.image(0) = RandomBytes(random, disk.image_bytes);
  CHECK_OK(first.SyncAll(IdOf(5)));
  CHECK_OK(first.SendEpoch(1));
  Generation newer(dir, store, 8);
  ScriptedPrimary second(newer.port(), 8, {disk.image_bytes});
  second.image(0) = RandomBytes(random, disk.image_bytes);
  (void)second.StartSync();
  (void)second.SendBase(0);
  const Error error = second.AwaitDiskError();
  CHECK(error.code == ErrorCode::kNoSpace && error.message.find("aside") != std::string::npos);
  CHECK(store.Await(Type::kFault).error.code == ErrorCode::kNoSpace);
  auto fenced = older.backup->Fence();
  CHECK_OK(fenced);
  CHECK_EQ(fenced.value().epoch, uint64_t{1});
  CHECK(Same(ReadFile(disk.image_path), first.image(0)));
}

TEST("the journal bounds an epoch, and holds the sender up only while it can be emptied") {
  TwoDisks two;
  two.store.MustOpen();
  Generation generation(two.dir, two.store, 7);
  ScriptedPrimary primary(generation.port(), 7, TwoDisks::kSizes);
  CHECK_OK(primary.SyncAll(IdOf(5)));
  // Before the first commit more than fits passes through it.
  for (int i = 0; i < 30; i++) {
    primary.Write(0, 0, RandomBytes(two.random, 1 << 20));
    CHECK_OK(primary.SendLogs());
  }
  // And after it, epoch by epoch.
  for (uint64_t epoch = 1; epoch <= 8; epoch++) {
    for (int i = 0; i < 5; i++) primary.Write(0, 512 * i, RandomBytes(two.random, 1 << 20));
    CHECK_OK(primary.SendEpoch(epoch));
  }
  const std::vector<Bytes> images = primary.images();
  for (int i = 0; i < 9; i++) {
    primary.Write(0, 0, RandomBytes(two.random, 1 << 20));
    (void)primary.SendLogs();
  }
  const Error error = primary.AwaitDiskError();
  CHECK(error.code == ErrorCode::kLimit && error.message.find("full of one epoch") != std::string::npos);
  CHECK_OK(generation.backup->Fence());
  CheckImages(two.dir, images);
}

TEST("what is zero is a hole in the image, from the base, a trim, and the aside") {
  TempDir dir;
  const uint64_t bytes = 8 << 20;
  Store store({Store::Describe(dir, "a", bytes)});
  store.MustOpen();
  const auto allocated = [&dir] {
    struct stat about {};
    CHECK(::stat((dir / "a.img").c_str(), &about) == 0);
    return static_cast<uint64_t>(about.st_blocks) * 512;
  };
  Random random(1);
  Generation older(dir, store, 7);
  {
    ScriptedPrimary primary(older.port(), 7, {bytes});
    const Bytes data = RandomBytes(random, 2 << 20);
    std::copy(data.begin(), data.end(), primary.image(0).begin());
    CHECK_OK(primary.SyncAll(IdOf(5)));
    CHECK_OK(primary.SendEpoch(1));
    store.Await(Type::kApplied, 1);
    CHECK_EQ(allocated(), uint64_t{2} << 20);
    primary.Clear(0, RecordKind::kTrim, 1 << 20, 1 << 20);
    CHECK_OK(primary.SendEpoch(2));
    store.Await(Type::kApplied, 2);
    CHECK_EQ(allocated(), uint64_t{1} << 20);
  }
  Generation newer(dir, store, 8);
  ScriptedPrimary primary(newer.port(), 8, {bytes});
  CHECK_OK(primary.SyncAll(IdOf(6)));
  CHECK_OK(primary.SendEpoch(1));
  store.Await(Type::kMerged, 1);
  CHECK_EQ(allocated(), uint64_t{0});
}

TEST("who may not: another store, a running server, a wrong size, somebody else's data") {
  TempDir dir;
  const DiskStore::Disk disk = Store::Describe(dir, "a", kImageBytes);
  Store store({disk});
  store.MustOpen();
  {
    Store second({disk});
    CHECK_ERROR(second->Open(), ErrorCode::kDisk, "in use");
  }
  CHECK_OK(store->Close());
  {
    auto server = ImageFile::Open(disk.image_path);
    CHECK_OK(server);
    CHECK_OK(server.value().Lock());
    CHECK_ERROR(store->Open(), ErrorCode::kDisk, "in use");
  }
  DiskStore::Disk other = disk;
  other.image_bytes += 512;
  Store wrong({other});
  CHECK_ERROR(wrong->Open(), ErrorCode::kDisk, "bytes, the primary's");
  other = Store::Describe(dir, "b", kOtherBytes, kJournalBytesMin - 1);
  Store narrow({other});
  CHECK_ERROR(narrow->Open(), ErrorCode::kLimit, "too small");
  other.journal_bytes = kJournalBytesMin;
  const Descriptor image(::open(other.image_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  CHECK(::ftruncate(image.get(), kOtherBytes) == 0 && ::pwrite(image.get(), "x", 1, 100) == 1);
  Store foreign({other});
  CHECK_ERROR(foreign->Open(), ErrorCode::kDiskForeign, "adopted");
  other.adopt = true;
  Store adopting({other});
  const auto opened = adopting.MustOpen();
  CHECK(opened[0].sync_id == SyncId{} && !opened[0].fresh && opened[0].marked_bytes == kOtherBytes);
  CHECK_OK(adopting->Close());
  // A journal that is damaged is not guessed about.
  const Descriptor journal(::open((dir / "b.meta/journal").c_str(), O_RDWR | O_CLOEXEC));
  CHECK(::pwrite(journal.get(), Bytes(8192).data(), 8192, 0) == 8192);
  CHECK_ERROR(adopting->Open(), ErrorCode::kDisk, "Remove it to begin anew");
}

// A block device over a file.
class Loop {
 public:
  explicit Loop(const std::string& path) {
    const Descriptor control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    // Another process may be taking the same one.
    for (int attempt = 0; attempt < 10 && control.valid() && !attached_; attempt++) {
      const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) return;
      device_ = "/dev/loop" + std::to_string(number);
      loop_ = Descriptor(::open(device_.c_str(), O_RDWR | O_CLOEXEC));
      attached_ = loop_.valid() && ::ioctl(loop_.get(), LOOP_SET_FD, file.get()) == 0;
    }
  }
  ~Loop() {
    if (attached_) ::ioctl(loop_.get(), LOOP_CLR_FD);
  }
  bool attached() const { return attached_; }
  const std::string& device() const { return device_; }
  int fd() const { return loop_.get(); }

 private:
  std::string device_;
  Descriptor loop_;
  bool attached_ = false;
};

TEST("a journal that breaks: told, cut; a takeover goes without it, and leaves none behind") {
  TempDir dir;
  SmallDisk small(dir, 1 << 20);
  const DiskStore::Disk disk = Store::Describe(dir, "a", 4 << 20);
  if (!small.mounted()) {
    std::printf(" – skipped: this user cannot mount a tmpfs");
    return;
  }
  {
    Store store({disk});
    store.MustOpen();
    CHECK_OK(store->Close());
  }
  // The same journal on a device whose medium gives out.
  const std::string journal = disk.meta_dir + "/journal";
  const std::string medium = small.path() + "/medium";
  {
    const Bytes slots = ReadFile(journal);
    const Descriptor file(::open(medium.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    CHECK(::ftruncate(file.get(), static_cast<off_t>(slots.size())) == 0);
    CHECK(::pwrite(file.get(), slots.data(), Journal::kCircleOffset, 0) == Journal::kCircleOffset);
    CHECK(::unlink(journal.c_str()) == 0);
  }
  const Loop loop(medium);
  if (!loop.attached()) {
    std::printf(" – skipped: no loop device to be had");
    return;
  }
  CHECK(::symlink(loop.device().c_str(), journal.c_str()) == 0);
  Random random(1);
  Store store({disk});
  store.MustOpen();
  Generation generation(dir, store, 7);
  ScriptedPrimary primary(generation.port(), 7, {disk.image_bytes});
  CHECK_OK(primary.SyncAll(IdOf(5)));
  CHECK_OK(primary.SendEpoch(1));
  std::map<uint64_t, std::vector<Bytes>> images;
  for (uint64_t epoch = 2;; epoch++) {
    primary.Write(0, random() % 100 * 4096, RandomBytes(random, 500'000));
    images[epoch] = primary.images();
    if (!primary.SendEpoch(epoch).ok()) break;
    CHECK(epoch < 100);
  }
  CHECK(store.Await(Type::kFault).id == "a");
  CHECK(!store->Open().ok());
  auto fenced = generation.backup->Fence();
  CHECK_OK(fenced);
  CheckImages(dir, images[fenced.value().epoch]);
  // Whoever dies from here on leaves nothing that could be applied to these.
  CHECK(::access(journal.c_str(), F_OK) != 0);
  CHECK_OK(store->Retire());
  CheckImages(dir, images[fenced.value().epoch]);
}

TEST("a block device as an image") {
  TempDir dir;
  const uint64_t bytes = 4 << 20;
  {
    const Descriptor file(::open((dir / "back").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    CHECK(::ftruncate(file.get(), static_cast<off_t>(bytes)) == 0);
  }
  const Loop loop(dir / "back");
  if (!loop.attached()) {
    std::printf(" – skipped: no loop device to be had");
    return;
  }
  {
    DiskStore::Disk disk = Store::Describe(dir, "a", bytes);
    disk.image_path = loop.device();
    Store store({disk});
    CHECK(!store.MustOpen()[0].fresh);
    Random random(1);
    Generation generation(dir, store, 7);
    ScriptedPrimary primary(generation.port(), 7, {bytes});
    primary.Scribble(random, 20);
    CHECK_OK(primary.SyncAll(IdOf(5)));
    for (uint64_t epoch = 1; epoch <= 5; epoch++) {
      primary.Scribble(random, 20);
      CHECK_OK(primary.SendEpoch(epoch));
    }
    CHECK_OK(generation.backup->Fence());
    CHECK_OK(store->Retire());
    Bytes content(bytes);
    CHECK(::pread(loop.fd(), content.data(), bytes, 0) == static_cast<ssize_t>(bytes));
    CHECK(Same(content, primary.image(0)));
  }
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
