// The map of a disk: what is marked, for how long, and when it may be believed.

#include <fcntl.h>
#include <sys/stat.h>

#include <set>

#include "disk/disk_map.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

using Blocks = std::set<uint64_t>;
using Mode = DiskMap::Mode;

constexpr uint64_t kBlocks = 1000;
constexpr uint64_t kImageBytes = kBlocks * kMapBlockBytes - 512;  // the last block is short

DiskMap OpenMap(const std::string& path, Mode mode) {
  auto map = DiskMap::Open(path, kImageBytes, mode);
  CHECK_OK(map);
  return std::move(map).value();
}

Blocks MarkedOf(const DiskMap& map) {
  Blocks blocks;
  uint64_t next = 0;
  map.ForEachMarkedRun([&](uint64_t offset, uint64_t length) {
    CHECK(offset >= next && offset % kMapBlockBytes == 0 && length > 0);
    CHECK(offset + length == kImageBytes || length % kMapBlockBytes == 0);
    next = offset + length + 1;  // runs that touch would be one
    for (uint64_t at = offset; at < offset + length; at += kMapBlockBytes) blocks.insert(at / kMapBlockBytes);
  });
  CHECK_EQ(map.MarkedBlocks(), blocks.size());
  return blocks;
}

Blocks AllBlocks() {
  Blocks blocks;
  for (uint64_t block = 0; block < kBlocks; block++) blocks.insert(block);
  return blocks;
}

SyncId IdOf(int value) {
  SyncId id;
  id.fill(static_cast<std::byte>(value));
  return id;
}

// As if the host had been started anew since the map was open.
void ForgetBoot(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_WRONLY));
  const std::byte other[16] = {};
  CHECK(::pwrite(file.get(), other, sizeof other, offsetof(MapHeader, boot_id)) == sizeof other);
}

void Overwrite(const std::string& path, uint64_t offset, const std::string& bytes) {
  const Descriptor file(::open(path.c_str(), O_WRONLY));
  CHECK(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)) ==
        static_cast<ssize_t>(bytes.size()));
}

TEST("map: a new one says that everything differs, and knows no other host") {
  const TempDir dir;
  DiskMap map = OpenMap(dir / "map", Mode::kActive);
  CHECK(map.created() && map.trusted());
  CHECK(MarkedOf(map) == AllBlocks());
  CHECK(map.sync_id() == SyncId{});
  map.Clear();
  CHECK(MarkedOf(map).empty());
  map.Mark(kImageBytes - 1, 1);
  CHECK(MarkedOf(map) == Blocks{kBlocks - 1});
}

TEST("map: marks of two windows, against a model") {
  const TempDir dir;
  Random random(51);
  DiskMap map = OpenMap(dir / "map", Mode::kActive);
  map.Clear();
  const DiskMap reader = OpenMap(dir / "map", Mode::kRead);
  Blocks newer, older, for_good;
  for (int step = 0; step < 1500; step++) {
    const uint64_t offset = random() % kImageBytes;
    const uint64_t length_max = random() % 8 == 0 ? kImageBytes : 3 * kMapBlockBytes;
    const uint64_t length = std::min(random() % length_max, kImageBytes - offset);
    switch (random() % 40) {
      case 0:
        map.Clear();
        newer = older = for_good;
        break;
      case 1: case 2: case 3: case 4: case 5: case 6: case 7: case 8:
        map.Rotate();
        older = newer;
        newer = for_good;
        break;
      default: {
        const bool stays = step % 500 == 0;
        stays ? map.MarkForGood(offset, length) : map.Mark(offset, length);
        for (uint64_t at = offset / kMapBlockBytes * kMapBlockBytes; at < offset + length && length > 0;
             at += kMapBlockBytes) {
          newer.insert(at / kMapBlockBytes);
          if (stays) for_good.insert(at / kMapBlockBytes);
        }
      }
    }
    Blocks expected = newer;
    expected.insert(older.begin(), older.end());
    CHECK(MarkedOf(map) == expected);
    CHECK(MarkedOf(reader) == expected);
    const uint64_t block = random() % kBlocks;
    CHECK(map.IsMarked(block) == expected.contains(block));
  }
  CHECK(!for_good.empty());
}

TEST("map: several threads mark at once, and none of it is lost") {
  const TempDir dir;
  DiskMap map = OpenMap(dir / "map", Mode::kActive);
  map.Clear();
  std::vector<std::thread> threads;
  for (uint64_t own = 0; own < 4; own++) {
    threads.emplace_back([&map, own] {
      for (uint64_t block = own; block < kBlocks; block += 4) map.Mark(block * kMapBlockBytes, 512);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(MarkedOf(map) == AllBlocks());
}

TEST("map: what was marked outlives a process that is killed, and its other fields do") {
  const TempDir dir;
  {
    DiskMap map = OpenMap(dir / "map", Mode::kActive);
    map.Clear();
    CHECK_OK(map.SetSyncId(IdOf(7)));
    map.Mark(5 * kMapBlockBytes, 1);
    map.Rotate();
    map.Mark(9 * kMapBlockBytes, 1);
  }
  DiskMap map = OpenMap(dir / "map", Mode::kReplica);
  CHECK(map.trusted() && !map.created());
  CHECK(map.sync_id() == IdOf(7));
  CHECK(MarkedOf(map) == (Blocks{5, 9}));
  map.Rotate();
  CHECK(MarkedOf(map) == Blocks{9});
}

TEST("map: after the host went down it is believed only if it was closed") {
  const TempDir dir;
  const std::string path = dir / "map";
  {
    DiskMap map = OpenMap(path, Mode::kActive);
    map.Clear();
    CHECK_OK(map.SetSyncId(IdOf(7)));
    map.Mark(3 * kMapBlockBytes, 1);
    CHECK_OK(map.Close());
  }
  ForgetBoot(path);
  CHECK(OpenMap(path, Mode::kRead).trusted());
  {
    const DiskMap map = OpenMap(path, Mode::kActive);
    CHECK(map.trusted() && map.sync_id() == IdOf(7));
    CHECK(MarkedOf(map) == Blocks{3});
  }
  ForgetBoot(path);
  CHECK(!OpenMap(path, Mode::kRead).trusted());
  {
    DiskMap map = OpenMap(path, Mode::kReplica);
    CHECK(!map.trusted() && map.sync_id() == SyncId{});
    CHECK(MarkedOf(map) == AllBlocks());
    CHECK_OK(map.Close());
  }
  // "Everything differs, from no known state" is true again.
  CHECK(OpenMap(path, Mode::kRead).trusted());
}

TEST("map: a lost write makes it worthless, until somebody begins anew") {
  const TempDir dir;
  const std::string path = dir / "map";
  {
    DiskMap map = OpenMap(path, Mode::kActive);
    map.Clear();
    CHECK_OK(map.SetSyncId(IdOf(7)));
    map.SetFault();
    CHECK(!map.trusted() && map.fault());
    CHECK_OK(map.Close());
  }
  CHECK(!OpenMap(path, Mode::kRead).trusted());
  const DiskMap map = OpenMap(path, Mode::kActive);
  CHECK(!map.trusted() && !map.fault() && map.sync_id() == SyncId{});
  CHECK(MarkedOf(map) == AllBlocks());
}

TEST("map: another image in its place, or one changed since it was closed, is not believed") {
  const TempDir dir;
  const std::string path = dir / "map";
  const auto image_of = [&dir](const char* name) {
    Descriptor image(::open((dir / name).c_str(), O_RDWR | O_CREAT, 0600));
    CHECK(::ftruncate(image.get(), kImageBytes) == 0);
    return image;
  };
  const Descriptor image = image_of("image");
  const Descriptor other = image_of("other");
  const auto open = [&path](const Descriptor& of) {
    auto map = DiskMap::Open(path, kImageBytes, Mode::kActive, of.get());
    CHECK_OK(map);
    return std::move(map).value();
  };
  const auto write = [&image] {
    ::usleep(20'000);  // a file's times are as fine as the kernel's tick
    CHECK(::pwrite(image.get(), "x", 1, 0) == 1);
  };
  const auto named = [&open](const Descriptor& of) {
    DiskMap map = open(of);
    map.Clear();
    CHECK_OK(map.SetSyncId(IdOf(7)));
    return map;
  };
  {
    DiskMap map = named(image);
    write();
    CHECK_OK(map.Close());
  }
  ForgetBoot(path);
  {
    const DiskMap map = open(image);
    CHECK(map.trusted() && map.sync_id() == IdOf(7) && MarkedOf(map).empty());
    CHECK(map.role_found() == MapRole::kActive);
    write();
  }
  // Killed: what it wrote is marked, and somebody else's file is not what it wrote to.
  CHECK(open(image).trusted());
  CHECK(!open(other).trusted());
  CHECK_OK(named(image).Close());
  write();
  {
    DiskMap map = open(image);
    CHECK(!map.trusted() && map.sync_id() == SyncId{});
    CHECK(MarkedOf(map) == AllBlocks());
  }
  // Tied to no file, such as a block device: as good as its own header.
  CHECK_OK(OpenMap(path, Mode::kActive).Close());
  CHECK(open(image).trusted());
}

TEST("map: one writer at a time, readers beside it") {
  const TempDir dir;
  const std::string path = dir / "map";
  CHECK_ERROR(DiskMap::Open(path, kImageBytes, Mode::kRead), ErrorCode::kSyscall, "map");
  {
    const DiskMap map = OpenMap(path, Mode::kActive);
    const auto second = DiskMap::Open(path, kImageBytes, Mode::kReplica);
    CHECK_ERROR(second, ErrorCode::kSyscall, "another process");
    CHECK_EQ(second.error().sys_errno, EBUSY);
    OpenMap(path, Mode::kRead);
  }
  OpenMap(path, Mode::kReplica);
}

TEST("map: what is damaged or no map is refused, and of another size begun anew") {
  const TempDir dir;
  const std::string path = dir / "map";
  const auto refused = [&](const char* why) {
    for (const Mode mode : {Mode::kRead, Mode::kActive}) {
      const auto map = DiskMap::Open(path, kImageBytes, mode);
      CHECK_ERROR(map, ErrorCode::kSyscall, why);
      CHECK_EQ(map.error().sys_errno, EUCLEAN);
    }
    ::unlink(path.c_str());
    OpenMap(path, Mode::kActive);
  };
  OpenMap(path, Mode::kActive);
  Overwrite(path, 0, "QFI");
  refused("magic");
  Overwrite(path, offsetof(MapHeader, version), "\x09");
  refused("version 9");
  Overwrite(path, offsetof(MapHeader, image_bytes), "\x01");
  refused("contradicts itself");
  Overwrite(path, offsetof(MapHeader, newer), "\x02");
  refused("contradicts itself");
  CHECK(::truncate(path.c_str(), 200) == 0);
  refused("length");
  CHECK(::truncate(path.c_str(), 20) == 0);
  refused("too short");

  const uint64_t larger = kImageBytes + kMapBlockBytes;
  CHECK_ERROR(DiskMap::Open(path, larger, Mode::kRead), ErrorCode::kSyscall, "another size");
  const auto map = DiskMap::Open(path, larger, Mode::kActive);
  CHECK_OK(map);
  CHECK(map.value().created());
  CHECK_EQ(map.value().MarkedBlocks(), kBlocks + 1);
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
