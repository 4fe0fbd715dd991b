// What of an image is read for the base copy: holes, zeros, changed blocks.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/base_copy.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

struct Copied {
  Bytes image;
  std::vector<bool> told;  // by block: as data or as a hole
  uint64_t data_bytes = 0;
  uint64_t hole_bytes = 0;
};

Copied CopyAll(BaseCopy& copy, size_t image_bytes) {
  Copied copied{Bytes(image_bytes, std::byte{0xee}), std::vector<bool>(DiskBlocks(image_bytes)), 0, 0};
  for (;;) {
    auto pieces = copy.Next();
    CHECK_OK(pieces);
    if (pieces.value().empty()) break;
    uint64_t together = 0;
    for (const BaseCopy::Piece& piece : pieces.value()) {
      CHECK(piece.length > 0 && piece.offset + piece.length <= image_bytes);
      const auto at = copied.image.begin() + static_cast<ptrdiff_t>(piece.offset);
      if (piece.kind == DiskBaseBody::Kind::kData) {
        CHECK_EQ(piece.data.size(), piece.length);
        together += piece.length;
        std::copy(piece.data.begin(), piece.data.end(), at);
        copied.data_bytes += piece.length;
      } else {
        CHECK(piece.data.empty());
        std::fill_n(at, piece.length, std::byte{0});
        copied.hole_bytes += piece.length;
      }
      for (uint64_t b = piece.offset / kDiskBlockBytes; b * kDiskBlockBytes < piece.offset + piece.length; b++) {
        copied.told[b] = true;
      }
    }
    CHECK(together <= kDiskPieceBytesMax);
    CHECK(copy.total_bytes() >= copy.done_bytes());
  }
  auto again = copy.Next();
  CHECK_OK(again);
  CHECK(again.value().empty());
  return copied;
}

// A sparse image with some data, and zeros that are written.
Bytes MakeImage(const std::string& path, size_t bytes, Random& random) {
  Bytes content(bytes);
  const Descriptor image(::open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600));
  CHECK(::ftruncate(image.get(), static_cast<off_t>(bytes)) == 0);
  const auto write = [&](size_t offset, const Bytes& data) {
    const size_t fits = std::min(data.size(), bytes - offset);
    std::copy_n(data.begin(), fits, content.begin() + static_cast<ptrdiff_t>(offset));
    CHECK(::pwrite(image.get(), data.data(), fits, static_cast<off_t>(offset)) ==
          static_cast<ssize_t>(fits));
  };
  write(0, RandomBytes(random, 5000));
  write(3 << 20, RandomBytes(random, (2 << 20) + 100));
  write(6 << 20, Bytes(1 << 20));
  write(bytes - 3000, RandomBytes(random, 3000));
  return content;
}

TEST("all of an image: data and holes, and what is zero is a hole") {
  Random random(1);
  const TempDir dir;
  constexpr size_t kBytes = (9 << 20) + 12345;
  const Bytes content = MakeImage(dir / "image", kBytes, random);
  auto copy = BaseCopy::Open(dir / "image", kBytes, std::nullopt);
  CHECK_OK(copy);
  const Copied copied = CopyAll(copy.value(), kBytes);
  CHECK(Same(copied.image, content));
  CHECK_EQ(copied.data_bytes + copied.hole_bytes, kBytes);
  // Data was in four places, to the block.
  CHECK(copied.data_bytes <= (2 << 20) + 5 * kDiskBlockBytes);
  CHECK_EQ(copy.value().total_bytes(), copy.value().done_bytes());
}

TEST("changed blocks, and no others") {
  Random random(2);
  const TempDir dir;
  constexpr size_t kBytes = (9 << 20) + 12345;
  const Bytes content = MakeImage(dir / "image", kBytes, random);
  for (int round = 0; round < 8; round++) {
    BlockSet changed(kBytes);
    for (int run = 0; run < round; run++) {
      const uint64_t first = random() % changed.blocks();
      changed.Add(first, std::min<uint64_t>(changed.blocks() - first, 1 + random() % 30));
    }
    const BlockSet wanted = changed;
    auto copy = BaseCopy::Open(dir / "image", kBytes, std::move(changed));
    CHECK_OK(copy);
    const Copied copied = CopyAll(copy.value(), kBytes);
    for (uint64_t block = 0; block < wanted.blocks(); block++) {
      CHECK_EQ(copied.told[block], wanted.Has(block));
      if (!wanted.Has(block)) continue;
      const size_t at = block * kDiskBlockBytes;
      const size_t bytes = std::min(kDiskBlockBytes, kBytes - at);
      CHECK(std::memcmp(&copied.image[at], &content[at], bytes) == 0);
    }
  }
}

TEST("an image that is too short, or shrinks, or is none") {
  const TempDir dir;
  Random random(3);
  MakeImage(dir / "image", 8 << 20, random);
  CHECK_ERROR(BaseCopy::Open(dir / "image", (8 << 20) + 1, std::nullopt), ErrorCode::kSyscall,
              "not the disk's 8388609");
  CHECK_ERROR(BaseCopy::Open(dir / "none", 1, std::nullopt), ErrorCode::kSyscall, "none");
  CHECK_ERROR(BaseCopy::Open(dir.path(), 1, std::nullopt), ErrorCode::kUnsupported, "neither");
  BlockSet last(8 << 20);
  last.Add(126, 2);
  auto copy = BaseCopy::Open(dir / "image", 8 << 20, std::move(last));
  CHECK_OK(copy);
  CHECK(::truncate((dir / "image").c_str(), 7 << 20) == 0);
  // The end of a file is a hole to lseek: it must not be taken for one.
  CHECK_ERROR(copy.value().Next(), ErrorCode::kSyscall, "shrank");
}

TEST("a set of blocks finds its runs") {
  Random random(4);
  for (int round = 0; round < 50; round++) {
    const uint64_t blocks = 1 + random() % 300;
    BlockSet set(blocks * kDiskBlockBytes);
    std::vector<bool> has(blocks);
    for (uint64_t i = random() % 10; i > 0; i--) {
      const uint64_t first = random() % blocks;
      const uint64_t count = random() % (blocks - first) + 1;
      set.Add(first, count);
      std::fill_n(has.begin() + static_cast<ptrdiff_t>(first), count, true);
    }
    CHECK_EQ(set.count(), static_cast<uint64_t>(std::count(has.begin(), has.end(), true)));
    for (uint64_t from = 0; from <= blocks; from++) {
      const auto begin = has.begin() + static_cast<ptrdiff_t>(from);
      CHECK_EQ(set.NextIn(from), static_cast<uint64_t>(std::find(begin, has.end(), true) - has.begin()));
      CHECK_EQ(set.NextOut(from), static_cast<uint64_t>(std::find(begin, has.end(), false) - has.begin()));
    }
  }
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
