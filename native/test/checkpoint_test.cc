// Checkpoints on disk: layers written, read as one, merged and copied; what is
// damaged is named, and takes no memory.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/copy_sparse.h"
#include "checkpoint/layer_chain.h"
#include "checkpoint/layer_writer.h"
#include "test/lab.h"
#include "wire/digest.h"

namespace holdfast::test {
namespace {

constexpr uint32_t kPage = 4096;
constexpr uint64_t kPages = 700;  // some chunks, and a part of one

#define DAMAGED(result, text) CHECK_ERROR(result, ErrorCode::kChecksum, text)

// A guest that is checkpointed to a directory, layer upon layer.
class Checkpoints {
 public:
  Checkpoints(const TempDir& dir, Random& random) : dir_(dir), random_(random) {
    ram_.Scribble(random_, kPages / 2);
  }

  // All of RAM, or what was written since the layer before.
  LayerFiles Take(const std::string& name, bool full) {
    LayerFiles files{dir_ / (name + ".ram"), dir_ / (name + ".index"), 0};
    auto writer = LayerWriter::Create(files.ram, kPage, kPages, full);
    CHECK_OK(writer);
    const CancelSignal cancel;
    LayerWriter::Counts counts;
    const auto written = ram_.TakeDirty();
    CHECK_OK(writer.value()->Write(ram_.source(), full ? ram_.All() : written, cancel, counts));
    // Once more, as rounds do: the later content counts.
    ram_.Scribble(random_, 40);
    CHECK_OK(writer.value()->Write(ram_.source(), ram_.TakeDirty(), cancel, counts));
    const auto trailer = writer.value()->Finish(files.index);
    CHECK_OK(trailer);
    files.trailer = trailer.value();
    return files;
  }

  void Run() { ram_.Scribble(random_, 60); }
  Bytes Ram() const { return ram_.Copy(); }

 private:
  const TempDir& dir_;
  Random& random_;
  GuestRam ram_{kPages, kPage};
};

Bytes Assembled(const std::vector<LayerFiles>& layers, const std::string& path) {
  const CancelSignal cancel;
  auto chain = LayerChain::Open(layers);
  CHECK_OK(chain);
  const auto damage = chain.value().Verify(5, cancel);
  CHECK_OK(damage);
  CHECK(damage.value().empty());
  CHECK_OK(chain.value().Assemble(path, cancel));
  Bytes bytes = ReadFile(path);
  ::unlink(path.c_str());
  return bytes;
}

void WriteFile(const std::string& path, const Bytes& bytes) {
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  CHECK(file.valid());
  CHECK(::write(file.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
}

TEST("layers read as guest RAM was at the last of them; a merged pair does, also once more") {
  Random random(1);
  const TempDir dir;
  Checkpoints guest(dir, random);
  const LayerFiles full = guest.Take("1", true);
  CHECK(Same(Assembled({full}, dir / "ram"), guest.Ram()));
  guest.Run();
  const LayerFiles second = guest.Take("2", false);
  const Bytes at_second = guest.Ram();
  guest.Run();
  const LayerFiles third = guest.Take("3", false);
  CHECK(Same(Assembled({full, second}, dir / "ram"), at_second));
  CHECK(Same(Assembled({full, second, third}, dir / "ram"), guest.Ram()));

  const CancelSignal cancel;
  for (int turn = 0; turn < 2; turn++) {  // as if it had been cut off just before its end
    const auto merged = MergeInto(full, second, dir / "merged.index", cancel);
    CHECK_OK(merged);
    CHECK(merged.value().merged_pages > 0);
    const LayerFiles both{full.ram, dir / "merged.index", merged.value().trailer};
    CHECK(Same(Assembled({both}, dir / "ram"), at_second));
    CHECK(Same(Assembled({both, third}, dir / "ram"), guest.Ram()));
  }
}

TEST("damage is found where it is; layers that do not go together are refused") {
  Random random(2);
  const TempDir dir;
  Checkpoints guest(dir, random);
  const LayerFiles full = guest.Take("1", true);
  guest.Run();
  const LayerFiles second = guest.Take("2", false);
  const CancelSignal cancel;
  DAMAGED(LayerChain::Open({second}), "does not go with the layer below it");
  DAMAGED(LayerChain::Open({full, full}), "does not go with the layer below it");
  DAMAGED(LayerChain::Open({{full.ram, full.index, second.trailer}}),
          "not the one that its manifest names");
  DAMAGED(MergeInto(second, full, dir / "x", cancel), "does not go with the layer below it");

  auto chain = LayerChain::Open({full, second});
  CHECK_OK(chain);
  LayerChain::Stretch stretch = chain.value().At(0, kPages);
  while (stretch.zero) stretch = chain.value().At(stretch.first_page + stretch.pages, kPages);
  const uint64_t page = stretch.first_page;
  const std::string& path = chain.value().LayerOf(page) == 0 ? full.ram : second.ram;
  Bytes bytes = ReadFile(path);
  bytes[page * kPage + 17] ^= std::byte{1};
  WriteFile(path, bytes);
  const auto damage = chain.value().Verify(5, cancel);
  CHECK_OK(damage);
  CHECK_EQ(damage.value().size(), size_t{1});
  CHECK_EQ(damage.value()[0].page, page);
  DAMAGED(chain.value().Assemble(dir / "ram", cancel), "page " + std::to_string(page));
  CHECK(::access((dir / "ram").c_str(), F_OK) != 0);

  CHECK(::truncate(path.c_str(), (kPages - 1) * kPage) == 0);
  DAMAGED(LayerChain::Open({full, second}), path + " is damaged: it has");
}

TEST("an index with any byte changed, or cut off anywhere, is refused") {
  Random random(3);
  const TempDir dir;
  Checkpoints guest(dir, random);
  const LayerFiles full = guest.Take("1", true);
  const Bytes index = ReadFile(full.index);
  for (int i = 0; i < 200; i++) {
    Bytes changed = index;
    changed[random() % changed.size()] ^= static_cast<std::byte>(1 << random() % 8);
    WriteFile(full.index, changed);
    DAMAGED(LayerChain::Open({full}), "is damaged");
    WriteFile(full.index, Bytes(index.begin(), index.begin() + static_cast<ptrdiff_t>(
                                                   random() % index.size())));
    DAMAGED(LayerChain::Open({full}), "is damaged");
  }
  WriteFile(full.index, Bytes(index.size() + kPages * 24));
  DAMAGED(LayerChain::Open({full}), "longer than that of all of RAM");
}

// The checksums are right: somebody has made it so, or a program that was wrong.
TEST("an index whose numbers are too large is refused before they take memory") {
  Random random(4);
  const TempDir dir;
  Checkpoints guest(dir, random);
  const LayerFiles full = guest.Take("1", true);
  const auto with = [&](size_t at, auto value) {
    Bytes index = ReadFile(full.index);
    std::memcpy(&index[at], &value, sizeof value);
    const size_t covered = index.size() - sizeof(uint64_t);
    const uint64_t trailer = HashBytes(std::span(index).first(covered));
    std::memcpy(&index[covered], &trailer, sizeof trailer);
    const LayerFiles files{full.ram, dir / "made.index", trailer};
    WriteFile(files.index, index);
    return LayerChain::Open({files});
  };
  constexpr size_t kPageSizeAt = 12, kPagesAt = 16, kRunsAt = 24, kContentAt = 32, kFirstRunAt = 48;
  CHECK_OK(with(kPagesAt, kPages));  // it is there
  DAMAGED(with(kPagesAt, uint64_t{1} << 39), full.ram + " is damaged: it has");
  DAMAGED(with(kPagesAt, ~uint64_t{0}), "its counts do not add up");
  DAMAGED(with(kPagesAt, kPages + 1), full.ram + " is damaged: it has");
  DAMAGED(with(kPageSizeAt, uint32_t{2} << 20), full.ram + " is damaged: it has");
  DAMAGED(with(kRunsAt, uint64_t{1} << 60), "its counts do not add up");
  DAMAGED(with(kContentAt, uint64_t{1} << 61), "its counts do not add up");
  DAMAGED(with(kFirstRunAt, kPages), "its runs do not add up");
  DAMAGED(with(kFirstRunAt + 8, ~uint32_t{0}), "its runs do not add up");
}

TEST("what is cancelled ends; an image is copied as it is, with its holes") {
  Random random(5);
  const TempDir dir;
  Checkpoints guest(dir, random);
  const LayerFiles full = guest.Take("1", true);
  CancelSignal cancel;
  const std::string image = dir / "image";
  const Bytes data = RandomBytes(random, 3 * kPage);
  {
    const Descriptor file(::open(image.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    CHECK(::ftruncate(file.get(), 8 << 20) == 0);
    CHECK(::pwrite(file.get(), data.data(), data.size(), 1 << 20) ==
          static_cast<ssize_t>(data.size()));
  }
  const auto copied = CopySparse(image, dir / "copy", cancel);
  CHECK_OK(copied);
  CHECK_EQ(copied.value().bytes, uint64_t{8 << 20});
  CHECK(Same(ReadFile(image), ReadFile(dir / "copy")));
  struct stat status {};
  CHECK(::stat((dir / "copy").c_str(), &status) == 0);
  CHECK(status.st_blocks * 512 < 1 << 20);

  cancel.Cancel();
  CHECK_ERROR(CopySparse(image, dir / "another", cancel), ErrorCode::kCancelled, "cancelled");
  auto chain = LayerChain::Open({full});
  CHECK_OK(chain);
  CHECK_ERROR(chain.value().Verify(5, cancel), ErrorCode::kCancelled, "cancelled");
  CHECK_ERROR(chain.value().Assemble(dir / "ram", cancel), ErrorCode::kCancelled, "cancelled");
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
