// Pages that a disk of both sides has: found, referred to, read there, and asked for
// again where the disk turns out to have something else.

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>

#include "receive/reference_disks.h"
#include "send/disk_index.h"
#include "send/wanted_runs.h"
#include "test/lab.h"
#include "wire/content_hash.h"
#include "wire/disk_reference.h"
#include "wire/frame_decoder.h"
#include "wire/wanted_pages.h"

namespace holdfast::test {
namespace {

constexpr uint32_t kPage = 4096;
constexpr uint64_t kPages = 600;
constexpr uint64_t kRamBytes = kPages * kPage;
constexpr uint64_t kTableBytesAmple = 64 << 20;

#define REFUSED(status, text) CHECK_ERROR(status, ErrorCode::kProtocol, text)

std::string Hex(const ContentHash& hash) {
  std::string text;
  for (const std::byte byte : hash) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", std::to_integer<unsigned>(byte));
    text += digits;
  }
  return text;
}

ContentHash HashOf(std::span<const std::byte> block) {
  const std::byte* at = block.data();
  ContentHash hash;
  HashContents({&at, 1}, block.size(), {&hash, 1});
  return hash;
}

// An image as a disk, block by block.
class Image {
 public:
  Image(const std::string& path, uint64_t blocks)
      : path_(path),
        blocks_(blocks),
        file_(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)) {
    CHECK(::ftruncate(file_.get(), static_cast<off_t>(bytes())) == 0);
  }
  void Write(uint64_t block, std::span<const std::byte> content) const {
    CHECK(::pwrite(file_.get(), content.data(), content.size(),
                   static_cast<off_t>(block * kPage)) == static_cast<ssize_t>(content.size()));
  }
  void Truncate(uint64_t blocks) const {
    CHECK(::ftruncate(file_.get(), static_cast<off_t>(blocks * kPage)) == 0);
  }
  uint64_t bytes() const { return blocks_ * kPage; }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
  const uint64_t blocks_;
  const Descriptor file_;
};

std::unique_ptr<DiskIndex> IndexOf(std::span<const DiskIndex::Disk> disks,
                                   uint64_t table_bytes_max = kTableBytesAmple) {
  auto index = DiskIndex::Start(disks, table_bytes_max);
  CHECK_OK(index);
  const CancelSignal cancel;
  CHECK_OK(index.value()->AwaitEnd(kDeadlineMs, cancel));
  CHECK(index.value()->progress().ended);
  return std::move(index).value();
}

TEST("the strong hash is the beginning of BLAKE2b-512, one block or four at a time") {
  Bytes blocks(7 * 4096);
  for (size_t i = 0; i < blocks.size(); i++) {
    blocks[i] = static_cast<std::byte>(i * 7 + i / 4096);
  }
  std::vector<const std::byte*> at;
  for (size_t i = 0; i < 7; i++) at.push_back(&blocks[i * 4096]);
  std::vector<ContentHash> hashes(7);
  HashContents(at, 4096, hashes);
  // By Python's hashlib.
  CHECK(Hex(hashes[0]) == "c6b0e91270674a44da343926e103ca6a");
  CHECK(Hex(hashes[1]) == "f415743fa598b4c137c134c4bb3dcac7");
  CHECK(Hex(hashes[3]) == "31404c9c7ed64c59112579f300f2afef");
  for (size_t i = 0; i < 7; i++) CHECK(HashOf({at[i], 4096}) == hashes[i]);
  blocks[4095] ^= std::byte{1};
  CHECK(HashOf({at[0], 4096}) != hashes[0]);
}

TEST("the index finds what the images have: data, not holes, of several disks") {
  Random random(1);
  const TempDir dir;
  const Image one(dir / "one", 1000);
  const Image two(dir / "two", 300);
  const Bytes a = RandomBytes(random, kPage);
  const Bytes b = RandomBytes(random, 3 * kPage);
  const Bytes c = RandomBytes(random, kPage);
  one.Write(999, a);
  one.Write(500, b);
  two.Write(0, c);
  two.Write(7, a);  // the first one that was read counts
  two.Write(9, Bytes(kPage));
  const DiskIndex::Disk disks[] = {{3, one.path(), one.bytes()}, {5, two.path(), two.bytes()}};
  const auto index = IndexOf(disks);
  const auto find = [&](const std::byte* page, uint32_t disk, uint64_t block) {
    const auto place = index->Find(page);
    CHECK(place.has_value());
    CHECK_EQ(place->disk, disk);
    CHECK_EQ(place->offset, block * kPage);
  };
  find(a.data(), 3, 999);
  find(&b[2 * kPage], 3, 502);
  find(c.data(), 5, 0);
  CHECK(!index->Find(Bytes(kPage).data()));
  CHECK(!index->Find(RandomBytes(random, kPage).data()));
  const DiskIndex::Progress progress = index->progress();
  CHECK_EQ(progress.blocks, uint64_t{5});
  CHECK(progress.read_bytes <= progress.data_bytes && !progress.error);

  const DiskIndex::Disk lacking[] = {{0, dir / "none", kPage}};
  CHECK_ERROR(DiskIndex::Start(lacking, kTableBytesAmple), ErrorCode::kSyscall, "none");
  const DiskIndex::Disk directory[] = {{0, dir.path(), kPage}};
  CHECK_ERROR(DiskIndex::Start(directory, kTableBytesAmple), ErrorCode::kUnsupported, "neither");
}

TEST("an index that is full, or is wanted no more, ends; one that is awaited can be cancelled") {
  Random random(2);
  const TempDir dir;
  const Image image(dir / "image", 2048);
  image.Write(0, RandomBytes(random, image.bytes()));
  const DiskIndex::Disk disks[] = {{0, image.path(), image.bytes()}};
  const auto small = IndexOf(disks, 16 << 10);
  // Three quarters of 2,048 places, the least there are, and the piece that was under way.
  CHECK(small->progress().blocks <= 1536 + 256);
  CHECK(small->progress().read_bytes < image.bytes());
  const Bytes other = RandomBytes(random, kPage);
  CHECK(!small->Find(other.data()).has_value());

  for (int i = 0; i < 20; i++) CHECK_OK(DiskIndex::Start(disks, kTableBytesAmple));
  auto index = DiskIndex::Start(disks, kTableBytesAmple);
  CHECK_OK(index);
  CancelSignal cancel;
  cancel.Cancel();
  const Status awaited = index.value()->AwaitEnd(kDeadlineMs, cancel);
  CHECK(awaited.ok() || awaited.error().code == ErrorCode::kCancelled);
  CHECK_OK(index.value()->AwaitEnd(0, CancelSignal()));  // no time at all: as far as it is
}

TEST("references round-trip; what lies outside the disks is refused, by field") {
  Random random(3);
  Bytes payload;
  const DiskReference good{.offset = 5 * kPage, .disk = 2, .hash = HashOf(RandomBytes(random, kPage))};
  PutReference(payload, good);
  PutReference(payload, {.offset = 0, .disk = 0, .hash = {}});
  CHECK_EQ(payload.size(), 2 * DiskReference::kBytes);
  const DiskReference again = ReferenceAt(payload, 0);
  CHECK(again.offset == good.offset && again.disk == good.disk && again.hash == good.hash);

  const uint64_t disks[] = {kPage, 0, 6 * kPage};
  CHECK_OK(CheckReferences(payload, disks, kPage));
  const auto refuse = [&](const DiskReference& reference, const char* text) {
    Bytes bytes;
    PutReference(bytes, {.offset = 0, .disk = 0, .hash = {}});
    PutReference(bytes, reference);
    REFUSED(CheckReferences(bytes, disks, kPage), text);
  };
  refuse({.offset = 0, .disk = 3, .hash = {}}, "reference 1: disk 3 is unknown");
  refuse({.offset = 0, .disk = 1, .hash = {}}, "disk 1 is unknown");
  refuse({.offset = 512, .disk = 2, .hash = {}}, "offset 512 is not a multiple");
  refuse({.offset = 6 * kPage, .disk = 2, .hash = {}}, "outside disk 2 of 24576 bytes");
  refuse({.offset = ~uint64_t{0} / kPage * kPage, .disk = 2, .hash = {}}, "outside disk 2");
  REFUSED(CheckReferences(payload, disks, 2 * kPage), "outside disk 2");
  payload[12] = std::byte{1};
  REFUSED(CheckReferences(payload, disks, kPage), "bytes 12 to 15");
}

TEST("wanted pages: asked for in order, in tables of bounded size, each to come once") {
  WantedPages wanted(100'000);
  CHECK(wanted.empty());
  for (uint64_t page = 99'000; page > 0; page -= 3) wanted.Want({page, 1});
  wanted.Want({1, 1});
  wanted.Want({2, 1});
  uint64_t asked = 0;
  size_t tables = 0;
  while (!wanted.empty()) {
    const auto table = wanted.Ask();
    CHECK(table.size() <= 8 << 10);
    const Bytes kept(table.begin(), table.end());
    auto pages = CheckRuns(kept, 100'000);
    CHECK_OK(pages);
    CHECK_EQ(wanted.missing_pages(), pages.value());
    asked += pages.value();
    tables++;
    WireRun run;
    for (RunCursor runs(kept); runs.Next(run);) {
      CHECK(!wanted.Came({run.first_page + run.pages, 1}));
      CHECK(wanted.Came(run));
      CHECK(!wanted.Came(run));
    }
    CHECK_EQ(wanted.missing_pages(), uint64_t{0});
  }
  CHECK_EQ(asked, uint64_t{33'002});
  CHECK(tables > 1);
}

TEST("wanted runs: where they lie in the source; what was not sent is refused") {
  RunTableWriter table;
  table.Add({3, 2});
  table.Add({6, 5});
  table.Add({20, 1});
  const PageRun sent[] = {{1, 101, 6}, {7, 300, 2}, {9, 9, 5}, {20, 0, 1}};
  auto runs = WantedRuns(table.bytes(), sent);
  CHECK_OK(runs);
  const std::vector<PageRun> expected = {{3, 103, 2}, {6, 106, 1}, {7, 300, 2}, {9, 9, 2}, {20, 0, 1}};
  CHECK_EQ(runs.value().size(), expected.size());
  for (size_t i = 0; i < expected.size(); i++) {
    CHECK_EQ(runs.value()[i].first_page, expected[i].first_page);
    CHECK_EQ(runs.value()[i].source_page, expected[i].source_page);
    CHECK_EQ(runs.value()[i].pages, expected[i].pages);
  }
  REFUSED(WantedRuns(table.bytes(), std::span(sent).first(3)), "page 20 was not sent");
  REFUSED(WantedRuns(table.bytes(), std::span(sent).subspan(1)), "page 3 was not sent");
}

// The order of what is asked for again, without a socket.
class Asking {
 public:
  Asking() { decoder_.NewConnection(1); }

  Status Show(FrameType type, const std::vector<WireRun>& runs, uint64_t payload_bytes,
              uint32_t slice = 0) {
    RunTableWriter table;
    for (const WireRun& run : runs) table.Add(run);
    auto header = decoder_.Header(
        0, EncodeHeader({.type = type,
                         .epoch = 1,
                         .table_bytes = static_cast<uint32_t>(table.bytes().size()),
                         .slice = slice,
                         .payload_bytes = payload_bytes}));
    if (!header.ok()) return header.error();
    return decoder_.Table(0, table.bytes());
  }
  Status Plain(FrameType type, uint64_t payload_bytes = 0) {
    auto header =
        decoder_.Header(0, EncodeHeader({.type = type, .epoch = 1, .payload_bytes = payload_bytes}));
    if (!header.ok()) return header.error();
    return {};
  }
  Status Commit(uint64_t pages, uint64_t zero_pages, bool whole) {
    HF_TRY(Plain(FrameType::kCommit, PartBody::kBytes));
    auto ended = decoder_.EndPart(0, EncodePart({{pages, zero_pages}, 5}), 5);
    if (!ended.ok()) return ended.error();
    CHECK_EQ(ended.value(), whole);
    return {};
  }
  // An epoch of four references, of which two are wanted and asked for.
  void UntilAsked() {
    CHECK_OK(Plain(FrameType::kBegin));
    CHECK_OK(Show(FrameType::kReferences, {{10, 4}}, 4 * DiskReference::kBytes));
    decoder_.Want({11, 1});
    decoder_.Want({13, 1});
    CHECK_OK(Plain(FrameType::kDevice, 10));
    CHECK(!decoder_.wanting());
    CHECK_OK(Commit(4, 0, false));
    CHECK(decoder_.wanting());
    auto pages = CheckRuns(decoder_.AskAgain(), 64);
    CHECK_OK(pages);
    CHECK_EQ(pages.value(), uint64_t{2});
  }
  FrameDecoder& decoder() { return decoder_; }

 private:
  const std::vector<uint64_t> disks_ = {uint64_t{1} << 20};
  FrameDecoder decoder_{{kPage, 64 * kPage, 64 * kPage, 1000, disks_}};
};

TEST("an epoch is whole when what was asked for again has come, no more and no less") {
  Asking whole;
  whole.UntilAsked();
  CHECK_OK(whole.Show(FrameType::kPages, {{11, 1}}, kPage));
  CHECK_OK(whole.Show(FrameType::kZero, {{13, 1}}, 0));
  CHECK_OK(whole.Commit(1, 1, true));
  CHECK(!whole.decoder().wanting());
  CHECK(!whole.decoder().in_epoch());

  const auto refuse = [](const std::function<Status(Asking&)>& what, const char* text) {
    Asking asking;
    asking.UntilAsked();
    REFUSED(what(asking), text);
  };
  refuse([](Asking& a) { return a.Show(FrameType::kPages, {{10, 1}}, kPage); }, "was not asked for");
  refuse([](Asking& a) { return a.Show(FrameType::kPages, {{11, 3}}, 3 * kPage); },
         "was not asked for");
  refuse([](Asking& a) {
    CHECK_OK(a.Show(FrameType::kZero, {{11, 1}}, 0));
    return a.Show(FrameType::kPages, {{11, 1}}, kPage);
  }, "was not asked for");
  refuse([](Asking& a) { return a.Show(FrameType::kPages, {{11, 1}}, kPage, 1); }, "slice 1");
  refuse([](Asking& a) { return a.Show(FrameType::kReferences, {{11, 1}}, DiskReference::kBytes); },
         "out of order");
  refuse([](Asking& a) { return a.Plain(FrameType::kDevice, 10); }, "out of order");
  refuse([](Asking& a) { return a.Plain(FrameType::kAbandon); }, "out of order");
  refuse([](Asking& a) { return a.Plain(FrameType::kBegin); }, "is open");
  refuse([](Asking& a) {
    CHECK_OK(a.Show(FrameType::kPages, {{11, 1}}, kPage));
    return a.Commit(1, 0, true);
  }, "1 of the pages that were asked for did not come");

  Asking early;
  REFUSED(early.Show(FrameType::kReferences, {{10, 1}}, DiskReference::kBytes), "out of order");
  CHECK_OK(early.Plain(FrameType::kBegin));
  REFUSED(early.Show(FrameType::kReferences, {{10, 2}}, DiskReference::kBytes), "for 2 pages");
  REFUSED(early.Show(FrameType::kReferences, {{10, 1}}, 33), "multiple of 32");
}

// A guest whose RAM has pages of a disk, and both hosts with an image of it.
class Pair {
 public:
  explicit Pair(unsigned streams = 1, bool verify = true)
      : ram(kPages, kPage), here(dir / "here", kPages), there(dir / "there", kPages) {
    for (uint64_t block = 0; block < kPages; block++) {
      const Bytes content = RandomBytes(random_, kPage);
      here.Write(block, content);
      there.Write(block, content);
      disk_.insert(disk_.end(), content.begin(), content.end());
    }
    // Pages 100 to 499 are blocks 0 to 399, backwards in part; the rest is the guest's own.
    for (uint64_t page = 0; page < kPages; page++) {
      if (page < 100) continue;  // zero
      const bool own = page >= 500;
      const Bytes content = own ? RandomBytes(random_, kPage) : Block(BlockOf(page));
      std::memcpy(ram.page(page), content.data(), kPage);
    }
    const DiskIndex::Disk disks[] = {{1, here.path(), here.bytes()}};
    index_ = IndexOf(disks);
    auto session = Backup::SessionFor(dir / "ram", kRamBytes);
    session.verify = verify;
    session.reference_disks = {{dir / "lacking", kRamBytes}, {there.path(), there.bytes()}};
    CHECK_OK(backup->OpenSession(session));
    CHECK(backup->reference_disks() == (std::vector<bool>{false, true}));
    auto connected = ConnectWriter(backup->port(), {Token(7), kPage, kRamBytes},
                                   Strategy::kSendfile, cancel_, streams);
    CHECK_OK(connected);
    writer_ = std::move(connected).value();
    writer_->UseIndex(index_.get());
  }

  static uint64_t BlockOf(uint64_t page) { return page < 300 ? page - 100 : 599 - page; }
  Bytes Block(uint64_t block) const {
    return {disk_.begin() + static_cast<ptrdiff_t>(block * kPage),
            disk_.begin() + static_cast<ptrdiff_t>((block + 1) * kPage)};
  }
  EpochWriter& writer() { return *writer_; }

  Status Round() {
    HF_TRY(writer_->BeginRound());
    const auto runs = ram.All();
    HF_TRY(writer_->Pages(ram.source(), runs, false));
    const EpochWriter::Again again{ram.source(), runs};
    HF_TRY(writer_->EndRound(&again));
    CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
    return {};
  }
  // Of the pages 50 to 549, from a copy elsewhere: the source's page is not the guest's.
  Status Epoch(uint64_t epoch) {
    const GuestRam staged(700, kPage);
    std::memcpy(staged.page(80), ram.page(50), 500 * kPage);
    const std::vector<PageRun> runs = {{50, 80, 200}, {250, 280, 300}};
    HF_TRY(writer_->BeginEpoch(epoch));
    HF_TRY(writer_->Pages(staged.source(), runs, true));
    HF_TRY(writer_->Device(Bytes(1000, std::byte{1})));
    HF_TRY(writer_->Commit());
    const EpochWriter::Again again{staged.source(), runs};
    auto ack = writer_->AwaitAck(epoch, &again);
    if (!ack.ok()) return ack.error();
    const ReceiverEvent committed = backup.Await(ReceiverEvent::Type::kCommitted, epoch);
    CHECK_EQ(committed.bytes, writer_->counters().bytes);
    CHECK_EQ(backup.Await(ReceiverEvent::Type::kApplied, epoch).epoch, epoch);
    CHECK(Same(ReadFile(dir / "ram"), ram.Copy()));
    return {};
  }

  const TempDir dir;
  GuestRam ram;
  const Image here;
  const Image there;
  Backup backup;

 private:
  Random random_{4};
  Bytes disk_;
  const CancelSignal cancel_;
  std::unique_ptr<DiskIndex> index_;
  std::unique_ptr<EpochWriter> writer_;
};

// On a host so busy that a read did not begin in time, pages come in full: then what
// is counted says nothing, and it is done once more.
bool HadTime(const SendCounters& sent) { return sent.disk_pages_unread == 0; }

void CheckTravelsAsReferences(unsigned streams, int attempts) {
  Pair pair(streams, streams == 1);
  CHECK_OK(pair.Round());
  SendCounters sent = pair.writer().counters();
  CHECK_EQ(sent.disk_pages, uint64_t{400});
  CHECK_EQ(sent.pages, uint64_t{100});
  CHECK_EQ(sent.zero_pages, uint64_t{100});
  CHECK_EQ(sent.disk_pages_different + sent.disk_pages_unread, uint64_t{0});
  CHECK(sent.disk_reference_bytes >= 400 * DiskReference::kBytes);
  CHECK(sent.bytes < 101 * kPage + sent.disk_reference_bytes);
  CHECK_OK(pair.Epoch(1));
  sent = pair.writer().counters();
  if (!HadTime(sent) && attempts > 1) return CheckTravelsAsReferences(streams, attempts - 1);
  CHECK_EQ(sent.disk_pages, uint64_t{400});
  CHECK_EQ(sent.pages, uint64_t{50});
  CHECK_EQ(sent.zero_pages, uint64_t{50});
}

TEST("pages that the disk has travel as references, in rounds and in epochs, over any streams") {
  for (const unsigned streams : {1u, 3u}) CheckTravelsAsReferences(streams, 5);
}

TEST("what the other disk does not have comes in full before anything counts") {
  for (const unsigned streams : {1u, 3u}) {
    Pair pair(streams);
    // After the index was made, and before the reference is read: the disks differ.
    for (uint64_t block = 0; block < 400; block += 5) pair.there.Write(block, Bytes(kPage));
    CHECK_OK(pair.Round());
    SendCounters sent = pair.writer().counters();
    CHECK_EQ(sent.disk_pages, uint64_t{400});
    CHECK_EQ(sent.disk_pages_different, uint64_t{80});
    CHECK_EQ(sent.pages, uint64_t{180});
    CHECK_OK(pair.Epoch(1));
    CHECK_EQ(pair.writer().counters().disk_pages_different, uint64_t{80});

    // And so does what was written here since: then it is the index that is old.
    const Bytes changed(kPage, std::byte{9});
    std::memcpy(pair.ram.page(120), changed.data(), kPage);
    pair.here.Write(20, changed);
    CHECK_OK(pair.Epoch(2));

    // A disk that has become shorter cannot be read; all of it comes.
    pair.there.Truncate(100);
    CHECK_OK(pair.Epoch(3));
    sent = pair.writer().counters();
    CHECK_EQ(sent.disk_pages_unread, uint64_t{300});
    CHECK_EQ(sent.disk_pages_different, uint64_t{19});  // block 20 is not referred to any more
  }
}

TEST("nothing of the disk is right: all pages come, in as many questions as it takes") {
  Pair pair;
  Random random(5);
  pair.there.Write(0, RandomBytes(random, pair.there.bytes()));
  CHECK_OK(pair.Round());
  CHECK_EQ(pair.writer().counters().disk_pages_different, uint64_t{400});
  CHECK_EQ(pair.writer().counters().pages, uint64_t{500});
}

// Reads as a disk of a network that is gone: from a while on, or never.
std::atomic<bool> g_hangs{false};
std::atomic<int> g_hanging{0};
ssize_t HangingRead(int file, void* target, size_t bytes, off_t offset) {
  if (g_hangs) {
    g_hanging++;
    while (g_hangs) ::usleep(1'000);
    g_hanging--;
  }
  return ::pread(file, target, bytes, offset);
}

TEST("a disk that hangs is not waited for, and nobody waits for who reads it") {
  Random random(11);
  const TempDir dir;
  const Image image(dir / "image", 8);
  const Bytes content = RandomBytes(random, image.bytes());
  image.Write(0, content);
  const ReferenceDisks::Disk named[] = {{image.path(), image.bytes()}};
  Bytes payload;
  for (uint32_t page = 0; page < 8; page++) {
    const uint64_t offset = uint64_t{page} * kPage;
    PutReference(payload, {offset, 0, HashOf({&content[offset], kPage})});
  }
  Bytes ram(8 * kPage);
  const iovec place{ram.data(), ram.size()};
  const auto read = [&](PatientReader& reader, const ReferenceDisks& disks) {
    ReferenceReader references(disks, reader, kPage, false);
    return references.Read(payload, {&place, 1});
  };
  const int threads = g_threads_open;
  {
    const ReferenceDisks disks(named);
    PatientReader reader(HangingRead);
    CHECK(read(reader, disks).indexes.empty());
    CHECK(ram == content);
    g_hangs = true;
    CHECK_EQ(read(reader, disks).why.unread, uint64_t{8});
    CHECK_EQ(read(reader, disks).why.unread, uint64_t{8});  // it hangs still
  }
  CHECK_EQ(g_threads_open.load(), threads);
  CHECK_EQ(g_hanging.load(), 1);
  g_hangs = false;
  while (g_hanging > 0) ::usleep(1'000);

  // One that comes back is read again.
  const ReferenceDisks disks(named);
  PatientReader reader(HangingRead);
  g_hangs = true;
  CHECK_EQ(read(reader, disks).why.unread, uint64_t{8});
  g_hangs = false;
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  while (!read(reader, disks).indexes.empty()) CHECK(MonotonicMs() < deadline_ms);
  CHECK(ram == content);
}

TEST("of many that hang, the moment until they are left is one") {
  constexpr int kReaders = 24;
  const TempDir dir;
  Image image(dir / "image", 1);
  const auto file = std::make_shared<const Descriptor>(::open(image.path().c_str(), O_RDONLY));
  const int threads = g_threads_open;
  g_hangs = true;
  double started_ms;
  {
    std::vector<std::unique_ptr<PatientReader>> readers;
    for (int i = 0; i < kReaders; i++) {
      auto& reader = readers.emplace_back(std::make_unique<PatientReader>(HangingRead));
      CHECK_EQ(reader->Read({{file, 0, 1}}, 1).bytes.at(0), size_t{0});
    }
    started_ms = MonotonicMs();
    for (const auto& reader : readers) reader->Stop();
  }
  // One after the other they would take 4.8 s.
  CHECK(MonotonicMs() - started_ms < 2'400);
  CHECK_EQ(g_threads_open.load(), threads);
  g_hangs = false;
  while (g_hanging > 0) ::usleep(1'000);
}

TEST("who sent no reference is asked for nothing, and who asks for more is refused") {
  const TempDir dir;
  uint16_t port = 0;
  const Descriptor listener = ListenLoopback(&port);
  const auto asked = [&](const std::vector<WireRun>& runs, const EpochWriter::Again* again) {
    std::thread peer([&] {
      const Descriptor socket = AcceptOne(listener);
      Bytes waste(kFrameHeaderBytes + HelloBody::kBytes);
      CHECK(::recv(socket.get(), waste.data(), waste.size(), MSG_WAITALL) > 0);
      RunTableWriter table;
      for (const WireRun& run : runs) table.Add(run);
      Bytes frames;
      const auto put = [&](std::span<const std::byte> bytes) {
        frames.insert(frames.end(), bytes.begin(), bytes.end());
      };
      put(EncodeHeader({.type = FrameType::kHelloOk, .payload_bytes = HelloOkBody::kBytes}));
      put(EncodeHelloOk({.link = 1}));
      CHECK(::send(socket.get(), frames.data(), frames.size(), MSG_NOSIGNAL) > 0);
      frames.clear();
      waste.resize(2 * kFrameHeaderBytes + PageTotals::kBytes);
      CHECK(::recv(socket.get(), waste.data(), waste.size(), MSG_WAITALL) > 0);
      put(EncodeHeader({.type = FrameType::kWanted,
                        .table_bytes = static_cast<uint32_t>(table.bytes().size()),
                        .payload_bytes = WantedBody::kBytes}));
      put(table.bytes());
      put(EncodeWanted({.different = 1}));
      CHECK(::send(socket.get(), frames.data(), frames.size(), MSG_NOSIGNAL) > 0);
      while (::recv(socket.get(), waste.data(), waste.size(), 0) > 0) {
      }
    });
    const CancelSignal cancel;
    Status ended;
    {
      auto writer = ConnectWriter(port, {Token(7), kPage, kRamBytes}, Strategy::kCopy, cancel);
      CHECK_OK(writer);
      CHECK_OK(writer.value()->BeginRound());
      ended = writer.value()->EndRound(again);
    }
    peer.join();
    return ended;
  };
  const GuestRam ram(kPages, kPage);
  const auto runs = ram.All();
  const EpochWriter::Again again{ram.source(), runs};
  REFUSED(asked({{5, 1}}, nullptr), "1 pages, but 0 were referred to");
  REFUSED(asked({{5, 2}}, &again), "2 pages, but 0 were referred to");
  REFUSED(asked({{kPages, 1}}, &again), "RAM has");
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
