// A guest that runs before its memory is there: threads of this program, whose
// page faults are served from a file or from a page server. Each of them checks
// every page that it meets, and writes to it: an old page would take that back.

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "base/kernel_abi.h"
#include "postcopy/fault_server.h"
#include "postcopy/file_origin.h"
#include "postcopy/link_origin.h"
#include "postcopy/page_order.h"
#include "postcopy/page_server.h"
#include "test/check.h"
#include "test/lab.h"
#include "wire/digest.h"
#include "wire/page_frame.h"

namespace holdfast::test {
namespace {

constexpr uint32_t kPage = 4096;
using Type = FaultServerEvent::Type;

// What a page of the source holds: its number everywhere, or nothing.
uint64_t WordOf(uint64_t page) { return page % 7 == 3 ? 0 : page * 0x9e3779b97f4a7c15 + 1; }

void FillPage(std::byte* at, uint64_t word) {
  for (size_t i = 0; i < kPage; i += sizeof word) std::memcpy(at + i, &word, sizeof word);
}

// The stopped VM: pages up to `populated`, the others are holes.
struct Source {
  explicit Source(uint64_t ram_pages, uint64_t populated)
      : fd(::memfd_create("source", MFD_CLOEXEC)), pages(ram_pages) {
    CHECK_EQ(::ftruncate(fd.get(), static_cast<off_t>(pages * kPage)), 0);
    memory = Mapping(::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0),
                     pages * kPage);
    for (uint64_t page = 0; page < populated; page++) {
      FillPage(memory.data() + page * kPage, WordOf(page));
    }
  }
  PageSource source() const { return {fd.get(), 0, memory.data(), memory.size()}; }

  Descriptor fd;
  uint64_t pages;
  Mapping memory;
};

// The VM that runs early: RAM that this program faults on, and the events of its server.
class Guest {
 public:
  explicit Guest(uint64_t ram_pages, uint64_t populated,
                 Descriptor file = Descriptor(::memfd_create("guest", MFD_CLOEXEC)))
      : pages_(ram_pages),
        populated_(populated),
        fd_(std::move(file)),
        event_(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))) {
    CHECK_EQ(::ftruncate(fd_.get(), static_cast<off_t>(bytes())), 0);
    memory_ = Mapping(
        ::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0), bytes());
    CHECK(event_.valid());
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = abi::kMissingFeatures;
    CHECK_EQ(::ioctl(event_.get(), UFFDIO_API, &api), 0);
    uffdio_register request{};
    request.range = {reinterpret_cast<uint64_t>(memory_.data()), bytes()};
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    CHECK_EQ(::ioctl(event_.get(), UFFDIO_REGISTER, &request), 0);
  }

  uint64_t bytes() const { return pages_ * kPage; }
  int fd() const { return fd_.get(); }
  std::byte* At(uint64_t page) const { return memory_.data() + page * kPage; }
  FaultServer& server() { return *server_; }

  void Start(std::unique_ptr<PageOrigin> origin, bool empty_all) {
    auto server = FaultServer::Start({.event_fd = event_.get(),
                                      .address = reinterpret_cast<uint64_t>(memory_.data()),
                                      .ram_bytes = bytes(),
                                      .page_size = kPage,
                                      .ram_fd = fd_.get(),
                                      .empty_all = empty_all},
                                     std::move(origin), [this](const FaultServerEvent& event) {
                                       const std::lock_guard lock(mutex_);
                                       events_.push_back(event);
                                       came_.notify_all();
                                     });
    CHECK_OK(server);
    server_ = std::move(server).value();
  }

  // The next event of this type; those before it are dropped.
  FaultServerEvent Await(Type type) {
    std::unique_lock lock(mutex_);
    for (;;) {
      const bool in_time = came_.wait_for(lock, std::chrono::seconds(20),
                                          [this] { return !events_.empty(); });
      if (!in_time) Fail(__FILE__, __LINE__, "an event did not come");
      const FaultServerEvent event = events_.front();
      events_.pop_front();
      if (event.type == type) return event;
      if (event.type == Type::kFailed) Fail(__FILE__, __LINE__, event.error.message);
    }
  }

  // Visits so many pages in random order: the first visit finds what the source
  // had, any later one what this thread left there.
  void Run(uint64_t seed, uint64_t thread, uint64_t threads, uint64_t visits) {
    Random random(seed);
    std::set<uint64_t> written;
    for (uint64_t i = 0; i < visits; i++) {
      // A word of each page is each thread's own.
      const uint64_t page = random() % pages_;
      const size_t at = (thread + threads * (page % 16)) * sizeof(uint64_t);
      uint64_t word;
      std::memcpy(&word, At(page) + at, sizeof word);
      const uint64_t source = page < populated_ ? WordOf(page) : 0;
      CHECK_EQ(word, written.contains(page) ? ~source : source);
      word = ~source;
      std::memcpy(At(page) + at, &word, sizeof word);
      written.insert(page);
    }
    // All of the rest of them: nothing was taken back.
    for (const uint64_t page : written) {
      uint64_t word;
      std::memcpy(&word, At(page) + (thread + threads * (page % 16)) * sizeof word, sizeof word);
      CHECK_EQ(word, page < populated_ ? ~WordOf(page) : ~uint64_t{0});
    }
  }

  void RunAll(uint64_t seed, uint64_t visits) {
    constexpr uint64_t kThreads = 3;
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < kThreads; i++) {
      threads.emplace_back([=, this] { Run(seed + i, i, kThreads, visits); });
    }
    for (std::thread& thread : threads) thread.join();
  }

  uint64_t ResidentPages() const {
    struct stat status {};
    CHECK_EQ(::fstat(fd_.get(), &status), 0);
    return static_cast<uint64_t>(status.st_blocks) * 512 / kPage;
  }

  // As EarlyGuest::Release: what is not there now is zeros.
  void Release() {
    server_->Stop();
    uffdio_range range{reinterpret_cast<uint64_t>(memory_.data()), bytes()};
    CHECK_EQ(::ioctl(event_.get(), UFFDIO_UNREGISTER, &range), 0);
  }

 private:
  const uint64_t pages_;
  const uint64_t populated_;
  Descriptor fd_;
  Mapping memory_;
  Descriptor event_;
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<FaultServerEvent> events_;
  std::unique_ptr<FaultServer> server_;
};

// --- which page is next ---

TEST("order: demanded first, then its block, then hot, then cold; each page once") {
  PageSet pending(1000);
  pending.Add(0, 200);
  pending.Add(500, 100);
  PageOrder order(std::move(pending), {{520, 520, 4}, {900, 900, 2}, {0, 0, 2}});
  const auto next = [&order](uint32_t pages_max) {
    const auto [run, demanded] = order.Next(pages_max);
    return std::to_string(run.first_page) + "+" + std::to_string(run.pages) +
           (demanded ? "!" : "");
  };
  CHECK(next(3) == "520+3");
  order.Demand(70);
  order.Demand(70);
  order.Demand(300);  // not to be sent
  order.Demand(130);
  CHECK(next(64) == "70+1!");
  CHECK(next(64) == "130+1!");
  CHECK(next(64) == "131+29");
  CHECK(next(64) == "128+2");
  CHECK(next(64) == "71+25");
  CHECK(next(64) == "64+6");
  CHECK(next(64) == "523+1");
  CHECK(next(64) == "0+2");
  CHECK(next(64) == "2+62");
  order.Demand(10);  // on its way already
  CHECK(next(20) == "96+20");
  CHECK(next(64) == "116+12");
  CHECK(next(64) == "160+40");
  CHECK(next(64) == "500+20");
  CHECK(next(64) == "524+64");
  CHECK(next(64) == "588+12");
  CHECK(next(64) == "0+0");
}

TEST("order: whatever is demanded, every page goes once, and a demanded one at once") {
  Random random(5);
  for (int round = 0; round < 200; round++) {
    const uint64_t ram_pages = 1 + random() % 3000;
    PageSet pending(ram_pages);
    std::vector<PageRun> hot;
    for (int i = 0; i < 20; i++) {
      const uint64_t first = random() % ram_pages;
      const auto pages = static_cast<uint32_t>(1 + random() % std::min<uint64_t>(ram_pages - first, 200));
      pending.Add(first, pages);
      if (random() % 3 == 0) hot.push_back({first, first, pages});
    }
    PageSet left = pending;
    PageOrder order(std::move(pending), hot);
    while (!left.empty()) {
      std::optional<uint64_t> demanded;
      if (random() % 4 == 0) {
        const uint64_t page = random() % ram_pages;
        if (left.Has(page)) demanded = page;
        order.Demand(page);
      }
      const auto portion = order.Next(static_cast<uint32_t>(1 + random() % 64));
      CHECK(portion.run.pages > 0);
      CHECK(portion.demanded == demanded.has_value());
      if (demanded) CHECK_EQ(portion.run.first_page, *demanded);
      for (uint64_t i = 0; i < portion.run.pages; i++) {
        CHECK(left.Remove(portion.run.first_page + i));
      }
    }
    CHECK_EQ(order.Next(64).run.pages, 0u);
  }
}

// --- frames ---

TEST("lists: any set of pages arrives, also one of many frames, and of none") {
  Random random(11);
  for (int round = 0; round < 20; round++) {
    const uint64_t ram_pages = 1 + random() % 2'000'000;
    PageSet pages(ram_pages);
    // Every other page makes the longest tables.
    const uint64_t step = round == 0 ? 2 : 1 + random() % 5000;
    for (uint64_t page = random() % 3; page < ram_pages && round != 1; page += 1 + random() % step) {
      pages.Add(page, std::min<uint64_t>(ram_pages - page, 1 + random() % 3));
    }
    const std::vector<PageRun> runs = pages.Runs();
    const std::vector<std::byte> frames = EncodePageList(FrameType::kPageList, runs);
    PageListReader reader(ram_pages);
    bool whole = false;
    for (std::span<const std::byte> rest = frames; !rest.empty();) {
      CHECK(!whole);
      const auto header = DecodeHeader(rest.first<kFrameHeaderBytes>(), 0);
      CHECK_OK(header);
      const auto table = rest.subspan(kFrameHeaderBytes, header.value().table_bytes);
      rest = rest.subspan(kFrameHeaderBytes + table.size());
      const auto added =
          reader.Add(table, DecodePageList(rest.first<PageListBody::kBytes>()));
      CHECK_OK(added);
      whole = added.value();
      rest = rest.subspan(PageListBody::kBytes);
    }
    CHECK(whole);
    const PageSet arrived(ram_pages, reader.Take());
    CHECK_EQ(arrived.size(), pages.size());
    for (const PageRun& run : runs) {
      for (uint64_t i = 0; i < run.pages; i++) CHECK(arrived.Has(run.first_page + i));
    }
  }
}

TEST("lists: one that lies about its length, or goes back, is refused") {
  const std::vector<PageRun> runs{{5, 5, 2}};
  const std::vector<std::byte> frame = EncodePageList(FrameType::kPageList, runs);
  const auto table = std::span(frame).subspan(kFrameHeaderBytes, frame.size() - kFrameHeaderBytes -
                                                                     PageListBody::kBytes);
  CHECK_ERROR(PageListReader(100).Add(table, {1}), ErrorCode::kProtocol, "1 pages has 2");
  CHECK_ERROR(PageListReader(100).Add({}, {3}), ErrorCode::kProtocol, "3 pages has 0");
  CHECK_ERROR(PageListReader(6).Add(table, {2}), ErrorCode::kProtocol, "RAM has 6 pages");
  PageListReader reader(100);
  CHECK_OK(reader.Add(table, {4}));
  CHECK_ERROR(reader.Add(table, {4}), ErrorCode::kProtocol, "goes back");
}

// --- from a file ---

Result<std::unique_ptr<FileOrigin>> OriginOf(const Source& source, uint32_t populated) {
  std::vector<Descriptor> files;
  files.emplace_back(::dup(source.fd.get()));
  return FileOrigin::Create(std::move(files), {{0, populated, 0, 0}}, source.pages, kPage);
}

TEST("file: threads run on an image that is not there yet, and find it as it was") {
  constexpr uint64_t kPages = 3000;
  constexpr uint64_t kPopulated = 2000;
  const Source source(kPages, kPopulated);
  Guest guest(kPages, kPopulated);
  // What stands there before must not be seen.
  for (uint64_t page = 0; page < kPages; page += 3) {
    const std::vector<std::byte> old(kPage, std::byte{0x5a});
    CHECK_EQ(::pwrite(guest.fd(), old.data(), kPage, static_cast<off_t>(page * kPage)),
             static_cast<ssize_t>(kPage));
  }
  auto origin = OriginOf(source, kPopulated);
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), /*empty_all=*/true);
  CHECK_EQ(guest.Await(Type::kListed).pages, kPopulated);
  guest.RunAll(1, 4000);
  guest.Await(Type::kComplete);
  const FaultServer::Stats stats = guest.server().stats();
  CHECK_EQ(stats.pages_left, 0u);
  CHECK_EQ(stats.demanded_pages + stats.background_pages, kPopulated);
  CHECK(stats.faults > 0);
  CHECK(stats.p50_us > 0 && stats.p50_us <= stats.p99_us && stats.p99_us <= stats.max_us);
  guest.Release();
}

TEST("file: what nobody touches of the zeros stays a hole, before and after the end") {
  constexpr uint64_t kPages = 4096;
  const Source source(kPages, 100);
  Guest guest(kPages, 100);
  auto origin = OriginOf(source, 100);
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), true);
  guest.Await(Type::kComplete);
  CHECK_EQ(std::to_integer<int>(*guest.At(3000)), 0);  // a fault that needs no source
  guest.Release();
  CHECK_EQ(std::to_integer<int>(*guest.At(3001)), 0);
  CHECK(guest.ResidentPages() <= 102);
}

TEST("file: extents in several files, in order of need; one that ends early is the end") {
  constexpr uint64_t kPages = 64;
  const Source newer(kPages, kPages);
  const Source older(kPages, kPages);
  const auto open = [](const Source& source) { return Descriptor(::dup(source.fd.get())); };
  std::vector<Descriptor> files;
  files.push_back(open(newer));
  files.push_back(open(older));
  Guest guest(kPages, kPages);
  auto origin = FileOrigin::Create(std::move(files),
                                   {{0, 10, 0, 0}, {10, 20, 1, 10 * kPage}, {30, 34, 0, 30 * kPage}},
                                   kPages, kPage, {{20, 20, 15}});
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), true);
  guest.RunAll(7, 300);
  guest.Await(Type::kComplete);
  guest.Release();

  std::vector<Descriptor> cut;
  cut.push_back(open(newer));
  auto beyond = FileOrigin::Create(std::move(cut), {{0, 10, 0, (kPages - 5) * kPage}}, kPages, kPage);
  CHECK_OK(beyond);
  Guest unlucky(kPages, 10);
  unlucky.Start(std::move(beyond).value(), true);
  CHECK(unlucky.Await(Type::kFailed).error.message.find("shorter than") != std::string::npos);
  unlucky.Release();
  std::vector<Descriptor> one;
  one.push_back(open(newer));
  CHECK_ERROR(FileOrigin::Create(std::move(one), {{4, 2, 0, 0}, {5, 1, 0, 0}}, kPages, kPage),
              ErrorCode::kProtocol, "not in order");
}

// --- from another host ---

struct Ends {
  Descriptor source;
  Descriptor destination;
};

Ends Connect() {
  std::array<int, 2> fds;
  CHECK_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  Ends ends{Descriptor(fds[0]), Descriptor(fds[1])};
  // What the receiver does: HELLO is read there, and answered.
  const HelloOkBody ok{.flags = 0, .link = 1};
  const HeaderBytes head =
      EncodeHeader({.type = FrameType::kHelloOk, .payload_bytes = HelloOkBody::kBytes});
  const auto body = EncodeHelloOk(ok);
  CHECK(::send(ends.destination.get(), head.data(), head.size(), 0) > 0);
  CHECK(::send(ends.destination.get(), body.data(), body.size(), 0) > 0);
  return ends;
}

void ReadHello(int fd) {
  std::array<std::byte, kFrameHeaderBytes + HelloBody::kBytes> hello;
  CHECK_EQ(::recv(fd, hello.data(), hello.size(), MSG_WAITALL), static_cast<ssize_t>(hello.size()));
  const HelloBody body = DecodeHello(std::span(hello).subspan<kFrameHeaderBytes, HelloBody::kBytes>());
  CHECK(body.of_pages());
  CHECK_OK(CheckHello(body));
}

TEST("link: a guest runs while its pages come, over connections that break again and again") {
  constexpr uint64_t kPages = 6000;
  constexpr uint64_t kPopulated = 5000;
  const Source source(kPages, kPopulated);
  Guest guest(kPages, kPopulated);
  const auto links = std::make_shared<PageLinks>();
  auto origin = LinkOrigin::Create(links, kPages, kPage);
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), true);

  ServeProgress progress;
  PageServer server(source.source(), kPage, {{0, 0, kPopulated}}, {{4000, 4000, 100}}, progress);
  const CancelSignal cancel;
  std::optional<PagesHaveBody> have;
  std::thread serving([&] {
    Random random(3);
    for (int connection = 0; !have; connection++) {
      Ends ends = Connect();
      const int cut = ::dup(ends.source.get());
      std::thread greeter([&links, socket = std::move(ends.destination)]() mutable {
        ReadHello(socket.get());
        links->Offer({std::move(socket), kPage});
      });
      // The first ones are cut after some bytes.
      std::thread cutter([cut, connection, &progress] {
        const uint64_t goal = progress.bytes + 3'000'000;
        for (int i = 0; connection < 4 && i < 2000 && progress.bytes < goal; i++) {
          std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
        if (connection < 4) ::shutdown(cut, SHUT_RDWR);
        ::close(cut);
      });
      const auto served = server.Serve(std::move(ends.source), {}, 5000, cancel);
      greeter.join();
      cutter.join();
      if (served.ok()) have = served.value();
      if (!served.ok()) CHECK(served.error().code == ErrorCode::kPeerLost);
    }
  });
  CHECK_EQ(guest.Await(Type::kListed).pages, kPopulated);
  guest.RunAll(42, 6000);
  guest.Await(Type::kComplete);
  serving.join();
  CHECK(progress.connections.load() >= 2);
  CHECK_EQ(progress.pages_left.load(), 0u);
  const FaultServer::Stats stats = guest.server().stats();
  CHECK(have->faults <= stats.faults);  // zeros are met later as well
  CHECK_EQ(stats.demanded_pages + stats.background_pages, kPopulated);
  // The source is gone now: that changes nothing.
  guest.Await(Type::kLost);
  guest.Release();
}

TEST("link: after rounds only what is listed is emptied and sent") {
  constexpr uint64_t kPages = 512;
  const Source source(kPages, kPages);
  Guest guest(kPages, kPages);
  // As the rounds left it: all there, but pages 100 to 199 are of before.
  for (uint64_t page = 0; page < kPages; page++) {
    std::vector<std::byte> content(kPage);
    FillPage(content.data(), page >= 100 && page < 200 ? 0x0101 : WordOf(page));
    CHECK_EQ(::pwrite(guest.fd(), content.data(), kPage, static_cast<off_t>(page * kPage)),
             static_cast<ssize_t>(kPage));
  }
  const auto links = std::make_shared<PageLinks>();
  auto origin = LinkOrigin::Create(links, kPages, kPage);
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), false);
  ServeProgress progress;
  PageServer server(source.source(), kPage, {{100, 100, 60}, {160, 160, 40}}, {}, progress);
  const CancelSignal cancel;
  Ends ends = Connect();
  std::thread serving([&, socket = std::move(ends.source)]() mutable {
    CHECK_OK(server.Serve(std::move(socket), {}, 5000, cancel));
  });
  ReadHello(ends.destination.get());
  links->Offer({std::move(ends.destination), kPage});
  CHECK_EQ(guest.Await(Type::kListed).pages, 100u);
  guest.RunAll(5, 1000);
  guest.Await(Type::kComplete);
  serving.join();
  guest.Release();
  CHECK_EQ(progress.demanded_pages + progress.background_pages, 100u);
}

TEST("link: damaged pages, and a source that lies, cost the connection and no page") {
  constexpr uint64_t kPages = 300;
  const Source source(kPages, kPages);
  Guest guest(kPages, kPages);
  const auto links = std::make_shared<PageLinks>();
  auto origin = LinkOrigin::Create(links, kPages, kPage);
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), true);
  std::thread running([&guest] { guest.RunAll(77, 500); });

  const auto header = [](FrameType type, uint64_t payload_bytes) {
    return EncodeHeader({.type = type, .payload_bytes = payload_bytes});
  };
  std::vector<std::byte> page(kPage);
  FillPage(page.data(), 1);  // not what it is
  // The list; then what is wrong.
  const auto impostor = [&](std::span<const std::byte> head, std::span<const std::byte> body,
                            std::span<const std::byte> content) {
    std::array<int, 2> fds;
    CHECK_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
    Descriptor end(fds[0]);
    links->Offer({Descriptor(fds[1]), kPage});
    const std::vector<PageRun> all{{0, 0, kPages}};
    std::vector<std::byte> bytes = EncodePageList(FrameType::kPageList, all);
    for (const auto part : {head, body, content}) bytes.insert(bytes.end(), part.begin(), part.end());
    CHECK_EQ(::send(end.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    return guest.Await(Type::kLost).error;
  };
  const PageDataBody damaged{9, 1, false, HashBytes(page) + 1};
  CHECK(impostor(header(FrameType::kPageData, PageDataBody::kBytes + kPage),
                 EncodePageData(damaged), page)
            .message.find("pages 9 to 9 arrived damaged") != std::string::npos);
  const PageDataBody beyond{kPages - 1, 2, false, 0};
  CHECK(impostor(header(FrameType::kPageZero, PageDataBody::kBytes), EncodePageData(beyond), {})
            .message.find("first page 299, pages 2") != std::string::npos);
  const PageDataBody short_one{9, 2, false, HashBytes(page)};
  CHECK(impostor(header(FrameType::kPageData, PageDataBody::kBytes + kPage),
                 EncodePageData(short_one), page)
            .message.find("4096 bytes for 2 pages") != std::string::npos);
  CHECK(impostor(header(FrameType::kPagesHave, PagesHaveBody::kBytes), EncodePagesHave({}), {})
            .message.find("PAGES_HAVE frame is out of order") != std::string::npos);

  ServeProgress progress;
  PageServer server(source.source(), kPage, {{0, 0, kPages}}, {}, progress);
  const CancelSignal cancel;
  Ends ends = Connect();
  std::thread serving([&, socket = std::move(ends.source)]() mutable {
    CHECK_OK(server.Serve(std::move(socket), {}, 5000, cancel));
  });
  ReadHello(ends.destination.get());
  links->Offer({std::move(ends.destination), kPage});
  guest.Await(Type::kComplete);
  running.join();
  serving.join();
  guest.Release();
}

TEST("link: a source whose RAM lies on other pages is the end before anything is listed") {
  Guest guest(64, 64);
  const auto links = std::make_shared<PageLinks>();
  auto origin = LinkOrigin::Create(links, 64, kPage);
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), true);
  Ends ends = Connect();
  links->Offer({std::move(ends.destination), 2u << 20});
  CHECK(guest.Await(Type::kFailed).error.code == ErrorCode::kRamMapping);
  guest.Release();
}

TEST("link: no room for what is to come is told before the guest may run") {
  constexpr uint64_t kPages = 300;
  const TempDir dir;
  const std::string small = dir / "small";
  CHECK(::mkdir(small.c_str(), 0700) == 0);
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m") != 0) {
    std::printf(" SKIPPED: mounting a tmpfs: %s", std::strerror(errno));
    return;
  }
  Descriptor file(::open((small + "/ram").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ::umount2(small.c_str(), MNT_DETACH);
  Guest guest(kPages, kPages, std::move(file));
  const auto links = std::make_shared<PageLinks>();
  auto origin = LinkOrigin::Create(links, kPages, kPage);
  CHECK_OK(origin);
  guest.Start(std::move(origin).value(), true);
  Ends ends = Connect();
  links->Offer({std::move(ends.destination), kPage});
  const std::vector<PageRun> all{{0, 0, kPages}};
  const std::vector<std::byte> list = EncodePageList(FrameType::kPageList, all);
  CHECK_EQ(::send(ends.source.get(), list.data(), list.size(), 0),
           static_cast<ssize_t>(list.size()));
  CHECK_ERROR(Status(guest.Await(Type::kFailed).error), ErrorCode::kNoSpace,
              "1228800 bytes are to come, 1048576 free");
  guest.Release();
}

TEST("link: whoever serves can be called off while nothing moves") {
  const Source source(64, 64);
  ServeProgress progress;
  PageServer server(source.source(), kPage, {{0, 0, 64}}, {}, progress);
  CancelSignal cancel;
  Ends ends = Connect();
  std::thread serving([&, socket = std::move(ends.source)]() mutable {
    CHECK_ERROR(server.Serve(std::move(socket), {}, 5000, cancel), ErrorCode::kCancelled, "");
  });
  ReadHello(ends.destination.get());
  cancel.Cancel();
  serving.join();
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
