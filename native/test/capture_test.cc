// Sets of pages, the staging pool under them, and which pages guest RAM has.

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <map>
#include <memory>
#include <set>

#include "base/kernel_abi.h"
#include "capture/ahead_pages.h"
#include "capture/hot_pages.h"
#include "capture/staging_pool.h"
#include "capture/step_aside.h"
#include "guest/ram.h"
#include "guest/ram_view.h"
#include "guest/tracker.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

constexpr uint32_t kPage = 4096;
constexpr uint64_t kRamPages = 300;

// Page to page in the source: what a list of runs says, page by page.
using PageMap = std::map<uint64_t, uint64_t>;

PageMap MapOf(const std::vector<PageRun>& runs) {
  PageMap map;
  uint64_t next_page = 0;
  for (const PageRun& run : runs) {
    CHECK(run.pages > 0 && run.first_page >= next_page);  // ascending, disjoint
    next_page = run.first_page + run.pages;
    for (uint32_t i = 0; i < run.pages; i++) map[run.first_page + i] = run.source_page + i;
  }
  return map;
}

std::vector<PageRun> RandomRuns(Random& random) {
  std::vector<PageRun> runs;
  const uint64_t step_max = 1 + random() % 40;
  uint64_t source = random() % 1000;
  for (uint64_t page = random() % step_max; page < kRamPages;) {
    const auto pages =
        static_cast<uint32_t>(std::min<uint64_t>(1 + random() % 20, kRamPages - page));
    runs.push_back({page, source, pages});
    source += pages;
    page += pages + random() % step_max;
  }
  return runs;
}

TEST("superseded: the newer pages in place of the older, the rest where it was") {
  Random random(21);
  for (int round = 0; round < 5000; round++) {
    const auto older = RandomRuns(random);
    const auto newer = RandomRuns(random);
    PageMap expected = MapOf(older);
    for (const auto& [page, source] : MapOf(newer)) expected[page] = source;
    CHECK(MapOf(Superseded(older, newer)) == expected);
  }
  CHECK(Superseded({}, {}).empty());
}

TEST("union: every page once, at its own place") {
  Random random(22);
  for (int round = 0; round < 5000; round++) {
    const auto left = RandomRuns(random);
    const auto right = RandomRuns(random);
    PageMap expected;
    for (const auto& set : {MapOf(left), MapOf(right)}) {
      for (const auto& [page, source] : set) expected[page] = page;
    }
    CHECK(MapOf(UnionOf(left, right)) == expected);
  }
}

TEST("without: what is left keeps its place, and a cut loses nothing") {
  Random random(25);
  for (int round = 0; round < 5000; round++) {
    auto runs = RandomRuns(random);
    const auto removed = RandomRuns(random);
    PageMap expected = MapOf(runs);
    for (const auto& [page, source] : MapOf(removed)) expected.erase(page);
    CHECK(MapOf(Without(runs, removed)) == expected);

    PageMap all = MapOf(runs);
    const uint64_t cut = random() % (kRamPages + 1);
    const auto rest = CutAfter(runs, cut);
    CHECK_EQ(PagesOf(runs), std::min<uint64_t>(cut, all.size()));
    PageMap joined = MapOf(runs);
    for (const auto& [page, source] : MapOf(rest)) {
      CHECK(joined.empty() || page > joined.rbegin()->first);
      joined[page] = source;
    }
    CHECK(joined == all);
  }
}

// Pages of one set of runs, one by one.
std::vector<PageRun> Single(std::initializer_list<uint64_t> pages) {
  std::vector<PageRun> runs;
  for (const uint64_t page : pages) AppendRun(runs, {page, page, 1});
  return runs;
}

TEST("hot pages: those found again twice, until they were found once in two epochs") {
  HotPages hot(kRamPages);
  const auto slice = [&hot](std::initializer_list<uint64_t> pages) {
    auto runs = Single(pages);
    hot.Written(runs);
    return MapOf(hot.TakeHot(runs));
  };
  const PageMap none;
  const PageMap seven{{7, 7}};
  // Written at each of three scans of one epoch; 8 and 9 are written once.
  CHECK(slice({7, 8}) == none);
  CHECK(slice({7, 9}) == none);
  CHECK(slice({7}) == seven);
  hot.EndEpoch(Single({20}));  // heat of 7: 2, and it was found again
  CHECK(slice({7, 8, 20}) == seven);
  hot.EndEpoch(Single({7}));  // 3
  for (int cooling = 0; cooling < 2; cooling++) {
    CHECK(slice({7}) == seven);
    hot.EndEpoch({});
  }
  CHECK(slice({7}) == none);
  // An epoch that was given up teaches nothing of what it did not see.
  hot.GiveUp();
  CHECK(slice({7}) == none);
  hot.EndEpoch(Single({7}));  // 2
  CHECK(slice({7}) == seven);
  hot.EndEpoch(Single({7}));
  // Without slices nothing cools down.
  for (int epoch = 0; epoch < 5; epoch++) hot.EndEpoch({});
  CHECK(slice({7}) == seven);
}

TEST("hot pages: what is taken out and what stays are the whole") {
  Random random(26);
  HotPages hot(kRamPages);
  uint64_t taken = 0;
  for (int round = 0; round < 3000; round++) {
    auto runs = RandomRuns(random);
    const PageMap whole = MapOf(runs);
    hot.Written(runs);
    PageMap parts = MapOf(hot.TakeHot(runs));
    taken += parts.size();
    parts.merge(MapOf(runs));
    CHECK(parts == whole);
    if (random() % 3 == 0) hot.EndEpoch(RandomRuns(random));
    if (random() % 9 == 0) hot.GiveUp();
  }
  CHECK(taken > 0);
}

TEST("ahead: each page is dirty, or its newest copy is where it is said to be") {
  Random random(27);
  for (int round = 0; round < 300; round++) {
    AheadPages ahead;
    PageMap sent;
    PageMap unsent;
    uint64_t places = 0;
    for (int slice = 0; slice < 8; slice++) {
      auto dirty = RandomRuns(random);
      AheadPages::Superseded expected;
      for (const auto& [page, source] : MapOf(dirty)) {
        const uint64_t was_sent = sent.erase(page);
        expected.sent_pages += was_sent;
        expected.pages += was_sent + unsent.erase(page);
      }
      const auto superseded = ahead.Supersede(dirty);
      CHECK_EQ(superseded.pages, expected.pages);
      CHECK_EQ(superseded.sent_pages, expected.sent_pages);
      CHECK_EQ(ahead.places(), places);
      for (PageRun& run : dirty) {
        run.source_page = places;
        places += run.pages;
      }
      ahead.Staged(dirty);
      for (const auto& [page, source] : MapOf(dirty)) unsent[page] = source;
      if (random() % 2 == 0) {
        ahead.Sent();
        sent.merge(unsent);
        unsent.clear();
        CHECK_EQ(ahead.places_sent(), places);
      }
      CHECK(MapOf(ahead.sent()) == sent);
      CHECK(MapOf(ahead.unsent()) == unsent);
      CHECK_EQ(PagesOf(ahead.Pages()), sent.size() + unsent.size());
    }
    ahead.Clear();
    CHECK(ahead.Pages().empty() && ahead.places() == 0 && ahead.slices() == 0);
  }
}

TEST("ordered: runs that overlap or go back come out ascending and disjoint") {
  Random random(23);
  for (int round = 0; round < 2000; round++) {
    std::vector<PageRun> runs;
    PageMap expected;
    for (uint64_t i = random() % 30; i > 0; i--) {
      const uint64_t page = random() % kRamPages;
      const auto pages = static_cast<uint32_t>(random() % 10);
      runs.push_back({page, page, pages});
      for (uint32_t p = 0; p < pages; p++) expected[page + p] = page + p;
    }
    CHECK(MapOf(Ordered(runs)) == expected);
  }
}

TEST("a thread's place: as /proc has it, whatever the thread is called") {
  const std::string middle = " 1 1 1 0 -1 4194304 10 0 0 0 1 2 0 0 20 0 3 0 77 1000 200 "
                             "18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 ";
  const auto runs = ParseThreadPlace("42 (qemu) S (x) R" + middle + "5 0 0\n");
  CHECK(runs && runs->runnable && runs->core == 5);
  const auto sleeps = ParseThreadPlace("42 (qemu) S" + middle + "11");
  CHECK(sleeps && !sleeps->runnable && sleeps->core == 11);
  CHECK(!ParseThreadPlace("42 (qemu) R" + middle + "-1 0"));
  CHECK(!ParseThreadPlace("42 (qemu) R" + middle));
  CHECK(!ParseThreadPlace("42 qemu R" + middle));
  CHECK(!ParseThreadPlace(""));
}

// A process that wants one core all the time.
class Spinner {
 public:
  explicit Spinner(const cpu_set_t& where) : pid_(::fork()) {
    CHECK(pid_ >= 0);
    if (pid_ > 0) return;
    ::sched_setaffinity(0, sizeof where, &where);
    for (;;) std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  ~Spinner() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Spinner(const Spinner&) = delete;
  Spinner& operator=(const Spinner&) = delete;
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

TEST("step aside: off the core that the other waits for, where there is another, and back") {
  cpu_set_t all;
  CHECK(::sched_getaffinity(0, sizeof all, &all) == 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  size_t core = 0;
  while (!CPU_ISSET(core, &all)) core++;
  CPU_SET(core, &one);
  {
    const Spinner spinner(one);
    auto neighbour = MainThread::Open(spinner.pid());
    CHECK_OK(neighbour);
    CHECK(::sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK(!StepAside(neighbour.value()).moved());  // there is no other
    bool moved = CPU_COUNT(&all) == 1;
    // Between the two the scheduler may have moved us by itself.
    for (int attempt = 0; !moved && attempt < 1000; attempt++) {
      CHECK(::sched_setaffinity(0, sizeof one, &one) == 0);
      CHECK(::sched_setaffinity(0, sizeof all, &all) == 0);
      const StepAside aside(neighbour.value());
      moved = aside.moved();
      if (moved) CHECK(::sched_getcpu() != static_cast<int>(core));
    }
    CHECK(moved);
  }
  CHECK(::sched_setaffinity(0, sizeof all, &all) == 0);
  const Spinner gone(all);
  auto neighbour = MainThread::Open(gone.pid());
  CHECK_OK(neighbour);
  ::kill(gone.pid(), SIGKILL);
  siginfo_t end{};
  CHECK(::waitid(P_PID, static_cast<id_t>(gone.pid()), &end, WEXITED | WNOWAIT) == 0);
  CHECK(!StepAside(neighbour.value()).moved());
}

TEST("staging: what was staged first stays, what comes later lies behind it") {
  Random random(24);
  const Bytes ram = RandomBytes(random, kRamPages * kPage);
  const PageSource guest{-1, 0, ram.data(), ram.size()};
  for (const unsigned threads : {1u, 3u}) {
    WorkerPool pool(threads);
    for (int round = 0; round < 20; round++) {
      const auto pages = round % 2 == 0 ? StagingPages::kAuto : StagingPages::kSmall;
      auto staging = StagingPool::Create(2 * kRamPages * kPage, pages);
      CHECK(staging.ok());
      auto first = RandomRuns(random);
      auto second = RandomRuns(random);
      CHECK(staging.value()->Stage(guest, kPage, first, 0, pool).ok());
      CHECK(staging.value()->Stage(guest, kPage, second, PagesOf(first), pool).ok());
      const PageSource staged = staging.value()->source();
      Bytes by_descriptor(kPage);
      for (const auto& [page, source] : MapOf(Superseded(first, second))) {
        CHECK(std::memcmp(staged.base + source * kPage, ram.data() + page * kPage, kPage) == 0);
        CHECK_EQ(::pread(staged.fd, by_descriptor.data(), kPage,
                         static_cast<off_t>(staged.file_offset + source * kPage)),
                 static_cast<ssize_t>(kPage));
        CHECK(std::memcmp(by_descriptor.data(), ram.data() + page * kPage, kPage) == 0);
      }
    }
  }
}

uint64_t BlockBytes(const StagingPool& staging) {
  struct stat status {};
  CHECK_EQ(::fstat(staging.source().fd, &status), 0);
  return static_cast<uint64_t>(status.st_blksize);
}

// Of the calling thread; only a raw call leaves the other threads their own.
bool DropSysAdmin() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  data[0].effective &= ~(1u << CAP_SYS_ADMIN);
  return ::syscall(SYS_capset, &header, data) == 0;
}

TEST("staging: on huge pages where they can be had, else on small ones") {
  constexpr uint64_t kBytes = (20 << 20) + kPage;  // not whole huge pages
  auto huge = StagingPool::Create(kBytes, StagingPages::kHuge);
  auto automatic = StagingPool::Create(kBytes);
  auto small = StagingPool::Create(kBytes, StagingPages::kSmall);
  CHECK_OK(automatic);
  CHECK_OK(small);
  CHECK(!small.value()->huge());
  CHECK_EQ(automatic.value()->huge(), huge.ok());
  CHECK_OK(automatic.value()->Grow(kBytes));
  CHECK_OK(small.value()->Grow(kBytes));
  CHECK_EQ(small.value()->source().size, kBytes);
  std::thread([] {
    CHECK(DropSysAdmin());
    CHECK_ERROR(StagingPool::Create(kBytes, StagingPages::kHuge), ErrorCode::kSyscall, "huge");
    auto fallen_back = StagingPool::Create(kBytes);
    CHECK_OK(fallen_back);
    CHECK(!fallen_back.value()->huge());
    CHECK_OK(fallen_back.value()->Grow(kBytes));
  }).join();
  if (!huge.ok()) {
    std::printf(" SKIPPED in part: %s", huge.error().message.c_str());
    return;
  }
  CHECK_EQ(BlockBytes(*huge.value()), uint64_t{2} << 20);
  CHECK_EQ(BlockBytes(*automatic.value()), uint64_t{2} << 20);
  CHECK_EQ(huge.value()->bytes_max(), kBytes);
  CHECK_OK(huge.value()->Grow(kBytes));
}

// Registers a range of this process as Userfault does in QEMU.
Descriptor Track(void* base, uint64_t bytes) {
  constexpr int kUserModeOnly = 1;
  Descriptor event(
      static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUserModeOnly)));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = abi::kTrackerFeatures;
  CHECK_EQ(::ioctl(event.get(), UFFDIO_API, &api), 0);
  uffdio_register range{};
  range.range = {reinterpret_cast<uint64_t>(base), bytes};
  range.mode = UFFDIO_REGISTER_MODE_WP;
  CHECK_EQ(::ioctl(event.get(), UFFDIO_REGISTER, &range), 0);
  return event;
}

// A mapping of the file, filled page by page by whoever else maps it.
struct HugeRam {
  static constexpr uint64_t kHugePage = 2 << 20;
  static constexpr uint64_t kPages = 6;
  static constexpr uint64_t kBytes = kPages * kHugePage;

  HugeRam() : file(::memfd_create("huge-ram", MFD_CLOEXEC | MFD_HUGETLB)) {
    CHECK_EQ(::ftruncate(file.get(), kBytes), 0);
    guest = Map();
  }
  Mapping Map() const {
    void* base = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    CHECK(base != MAP_FAILED);
    return Mapping(base, kBytes);
  }
  void Fill(uint64_t page, int value) const {
    std::memset(Map().data() + page * kHugePage + kHugePage - 64, value, 64);
  }
  uint64_t held_pages() const {
    struct stat status {};
    CHECK_EQ(::fstat(file.get(), &status), 0);
    return static_cast<uint64_t>(status.st_blocks) * 512 / kHugePage;
  }

  Descriptor file;
  Mapping guest;
};

TEST("what was written is counted, and stays written") {
  constexpr uint64_t kPage = 4096;
  constexpr uint64_t kPages = 4096;
  // More regions than the kernel gathers at a time.
  constexpr uint64_t kWritten = kPages / 3 + 1;
  const Descriptor file(::memfd_create("ram", MFD_CLOEXEC));
  CHECK_EQ(::ftruncate(file.get(), kPages * kPage), 0);
  void* base =
      ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  CHECK(base != MAP_FAILED);
  const Mapping guest(base, kPages * kPage);
  const Descriptor event = Track(base, kPages * kPage);
  auto tracker =
      DirtyTracker::Open(::getpid(), reinterpret_cast<uint64_t>(base), kPages * kPage, kPage);
  CHECK_OK(tracker);
  WorkerPool pool(2);
  const auto count = [&] {
    auto pages = tracker.value()->CountWritten(pool);
    CHECK_OK(pages);
    return pages.value();
  };
  CHECK_OK(tracker.value()->Scan(pool));  // the first reports every page
  CHECK_EQ(count(), 0u);
  for (uint64_t page = 0; page < kPages; page += 3) guest.data()[page * kPage] = std::byte{1};
  CHECK_EQ(count(), kWritten);
  CHECK_EQ(count(), kWritten);
  auto written = tracker.value()->Scan(pool);
  CHECK_OK(written);
  CHECK_EQ(PagesOf(Ordered(std::move(written).value())), kWritten);
  CHECK_EQ(count(), 0u);
}

// RAM of which the file holds little: written from here, or by others into the file.
struct SparseRam {
  static constexpr uint64_t kPage = 4096;
  static constexpr uint64_t kBlock = 512;
  static constexpr uint64_t kBlocks = 6;
  static constexpr uint64_t kPages = kBlocks * kBlock + 7;  // the last block is short
  static constexpr uint64_t kFileOffset = 3 * kPage;

  SparseRam() : file(::memfd_create("ram", MFD_CLOEXEC)) {
    CHECK_EQ(::ftruncate(file.get(), kFileOffset + kPages * kPage), 0);
    void* base = ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(),
                        kFileOffset);
    CHECK(base != MAP_FAILED);
    guest = Mapping(base, kPages * kPage);
    event = Track(base, kPages * kPage);
    auto opened = DirtyTracker::Open(::getpid(), reinterpret_cast<uint64_t>(base), kPages * kPage,
                                     kPage, SparseFile{file.get(), kFileOffset, kPage});
    CHECK_OK(opened);
    tracker = std::move(opened).value();
  }

  void Write(uint64_t page) { guest.data()[page * kPage] = std::byte{1}; }
  void Read(uint64_t page) {
    CHECK(*const_cast<volatile std::byte*>(guest.data() + page * kPage) == std::byte{0});
  }
  std::vector<uint64_t> Scan() {
    auto runs = tracker->Scan(pool);
    CHECK_OK(runs);
    std::vector<uint64_t> pages;
    for (const PageRun& run : runs.value()) {
      CHECK_EQ(run.first_page, run.source_page);
      for (uint64_t i = 0; i < run.pages; ++i) pages.push_back(run.first_page + i);
    }
    return pages;
  }
  uint64_t Count() {
    auto pages = tracker->CountWritten(pool);
    CHECK_OK(pages);
    return pages.value();
  }
  uint64_t HeldPages() const {
    struct stat status {};
    CHECK_EQ(::fstat(file.get(), &status), 0);
    return static_cast<uint64_t>(status.st_blocks) * 512 / kPage;
  }

  Descriptor file;
  Mapping guest;
  Descriptor event;
  std::unique_ptr<DirtyTracker> tracker;
  WorkerPool pool{2};
};

TEST("sparse RAM: what nobody has touched is not reported, and neither scanned nor filled") {
  using Pages = std::vector<uint64_t>;
  constexpr uint64_t kBlock = SparseRam::kBlock;
  SparseRam ram;
  CHECK(ram.Scan().empty());
  ram.Write(2 * kBlock + 5);
  CHECK_EQ(ram.Count(), 1u);
  CHECK_EQ(ram.Count(), 1u);
  CHECK(ram.Scan() == Pages{2 * kBlock + 5});
  CHECK_EQ(ram.Count(), 0u);
  CHECK(ram.Scan().empty());

  // Its block is armed now, page by page: also those that did not exist.
  ram.Write(2 * kBlock + 5);
  ram.Write(2 * kBlock + 100);
  ram.Write(0);
  ram.Write(SparseRam::kPages - 1);
  CHECK_EQ(ram.Count(), 4u);
  CHECK(ram.Scan() == (Pages{0, 2 * kBlock + 5, 2 * kBlock + 100, SparseRam::kPages - 1}));
  CHECK(ram.Scan().empty());

  // A page that was read only may count, but it must not hide one that is written next to it.
  ram.Read(4 * kBlock);
  ram.Scan();
  ram.Write(4 * kBlock);
  ram.Write(4 * kBlock + 1);
  CHECK(ram.Scan() == (Pages{4 * kBlock, 4 * kBlock + 1}));
  CHECK_EQ(ram.HeldPages(), 6u);
}

TEST("sparse RAM: whatever is written between scans is reported by the next") {
  Random random(7);
  SparseRam ram;
  std::set<uint64_t> touched;
  for (int round = 0; round < 200; ++round) {
    std::set<uint64_t> written;
    for (uint64_t i = random() % 9; i > 0; --i) {
      // Mostly where it was touched before, so that blocks are left to be new in later rounds.
      const uint64_t span = (static_cast<uint64_t>(round) / 40 + 1) * SparseRam::kPages / 5;
      written.insert(random() % span);
    }
    for (const uint64_t page : written) ram.Write(page);
    touched.insert(written.begin(), written.end());
    CHECK_EQ(ram.Count(), written.size());
    const auto reported = ram.Scan();
    CHECK(std::set<uint64_t>(reported.begin(), reported.end()) == written);
  }
  CHECK_EQ(ram.HeldPages(), touched.size());
}

// A tmpfs on which files have transparent huge pages, mapped as such.
class ThpRam {
 public:
  static constexpr uint64_t kPage = 4096;
  static constexpr uint64_t kHuge = 512;  // pages
  static constexpr uint64_t kPages = 4 * kHuge;
  static constexpr uint64_t kBytes = kPages * kPage;

  ThpRam() {
    mounted_ = ::mount("tmpfs", dir_.path().c_str(), "tmpfs", 0, "huge=always,size=32m") == 0;
    if (!mounted_) return;
    file_ = Descriptor(::open((dir_ / "ram").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    CHECK_EQ(::ftruncate(file_.get(), kBytes), 0);
    constexpr uint64_t kHugeBytes = kHuge * kPage;
    void* room = ::mmap(nullptr, kBytes + kHugeBytes, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(room != MAP_FAILED);
    room_ = Mapping(room, kBytes + kHugeBytes);
    const uint64_t at = reinterpret_cast<uint64_t>(room);
    const uint64_t aligned = (at + kHugeBytes - 1) / kHugeBytes * kHugeBytes;
    base_ = static_cast<std::byte*>(::mmap(reinterpret_cast<void*>(aligned), kBytes,
                                           PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                                           file_.get(), 0));
    CHECK(base_ != MAP_FAILED);
    for (uint64_t page = 0; page < kPages; page++) Write(page);
  }
  ~ThpRam() {
    room_.Unmap();
    file_.Close();
    if (mounted_) ::umount2(dir_.path().c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  std::byte* base() const { return base_; }
  int file() const { return file_.get(); }
  void Write(uint64_t page) { base_[page * kPage] ^= std::byte{1}; }
  // What is left when the kernel reclaims a huge page, or splits it: no entry. The content stays.
  void DropEntries(uint64_t first, uint64_t pages) {
    CHECK_EQ(::madvise(base_ + first * kPage, pages * kPage, MADV_DONTNEED), 0);
  }
  // By one entry for all of it.
  uint64_t mapped_huge_kb() const {
    std::ifstream smaps("/proc/self/smaps");
    const std::string name = "ShmemPmdMapped:";
    uint64_t sum_kb = 0;
    for (std::string line; std::getline(smaps, line);) {
      if (line.starts_with(name)) sum_kb += std::stoull(line.substr(name.size()));
    }
    return sum_kb;
  }

 private:
  TempDir dir_;
  bool mounted_ = false;
  Descriptor file_;
  Mapping room_;
  std::byte* base_ = nullptr;
};

TEST("transparent huge pages: whatever becomes of their entries, no write is missed") {
  ThpRam ram;
  if (!ram.mounted() || ram.mapped_huge_kb() < ThpRam::kBytes / 1024) {
    std::printf(" SKIPPED: no tmpfs with transparent huge pages to be had");
    return;
  }
  const Descriptor event = Track(ram.base(), ThpRam::kBytes);
  auto opened = DirtyTracker::Open(::getpid(), reinterpret_cast<uint64_t>(ram.base()),
                                   ThpRam::kBytes, ThpRam::kPage,
                                   SparseFile{ram.file(), 0, ThpRam::kPage});
  CHECK_OK(opened);
  WorkerPool pool(2);
  const auto scan = [&] {
    auto runs = opened.value()->Scan(pool);
    CHECK_OK(runs);
    return MapOf(Ordered(std::move(runs).value()));
  };
  CHECK_EQ(scan().size(), ThpRam::kPages);
  CHECK_EQ(ram.mapped_huge_kb(), ThpRam::kBytes / 1024);  // protected as they are
  CHECK(scan().empty());
  Random random(8);
  for (int round = 0; round < 300; ++round) {
    std::set<uint64_t> written;
    for (uint64_t i = random() % 8; i > 0; --i) {
      const uint64_t page = random() % ThpRam::kPages;
      const uint64_t huge = page / ThpRam::kHuge * ThpRam::kHuge;
      switch (random() % 4) {
        case 0: ram.DropEntries(huge, ThpRam::kHuge); break;
        case 1: ram.DropEntries(page, std::min<uint64_t>(9, ThpRam::kPages - page)); break;
        default:
          ram.Write(page);
          written.insert(page);
      }
    }
    const PageMap reported = scan();
    for (const uint64_t page : written) CHECK(reported.contains(page));
    CHECK(scan().empty());
  }
}

TEST("huge pages: those that the file holds and the guest has not mapped count as well") {
  const HugePages reserved(HugeRam::kPages);
  if (!reserved.reserved()) {
    std::printf(" SKIPPED: no %d huge pages to be had", static_cast<int>(HugeRam::kPages));
    return;
  }
  const HugeRam ram;
  const auto address = reinterpret_cast<uint64_t>(ram.guest.data());
  const Descriptor event = Track(ram.guest.data(), HugeRam::kBytes);
  auto located = LocateRamMapping(::getpid(), address, HugeRam::kBytes, 0);
  CHECK_OK(located);
  CHECK_EQ(located.value().page_size, uint32_t{HugeRam::kHugePage});
  auto view = RamView::Open(::getpid(), located.value(), address, HugeRam::kBytes, 0);
  CHECK_OK(view);
  auto opened = DirtyTracker::Open(::getpid(), address, HugeRam::kBytes, HugeRam::kHugePage);
  CHECK_OK(opened);
  DirtyTracker& tracker = *opened.value();
  WorkerPool pool(2);
  const auto populated = [&] {
    auto runs = view.value()->Populated(tracker);
    CHECK_OK(runs);
    PageMap pages = MapOf(runs.value());
    std::vector<uint64_t> numbers;
    for (const auto& [page, source] : pages) numbers.push_back(page);
    return numbers;
  };
  const auto written = [&] {
    auto runs = tracker.Scan(pool);
    CHECK_OK(runs);
    return PagesOf(runs.value());
  };
  using Pages = std::vector<uint64_t>;
  CHECK(populated().empty());
  ram.guest.data()[4 * HugeRam::kHugePage] = std::byte{1};
  CHECK_EQ(written(), 1u);  // on hugetlbfs not what nobody has mapped
  CHECK(populated() == Pages{4});
  ram.Fill(1, 7);
  ram.Fill(2, 0);
  CHECK(populated() == (Pages{1, 4}));
  CHECK_EQ(ram.held_pages(), 3u);  // nothing was filled by looking
  CHECK_EQ(written(), 0u);
  ram.guest.data()[1 * HugeRam::kHugePage] = std::byte{1};
  CHECK_EQ(written(), 1u);
  for (uint64_t page = 0; page < HugeRam::kPages; page++) ram.Fill(page, 9);
  CHECK(populated() == (Pages{0, 1, 2, 3, 4, 5}));
}

TEST("huge pages larger than 2 MiB are refused") {
  RamMapping located;
  located.page_size = 1 << 30;
  CHECK_ERROR(RamView::Open(::getpid(), located, 0, 1 << 30, 0), ErrorCode::kUnsupported,
              "1024 MiB");
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
