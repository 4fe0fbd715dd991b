#include "test/lab.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>

namespace holdfast::test {
namespace {

bool WriteAll(int fd, const std::byte* bytes, size_t count) {
  while (count > 0) {
    const ssize_t sent = ::send(fd, bytes, count, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes += sent;
    count -= static_cast<size_t>(sent);
  }
  return true;
}

}  // namespace

Descriptor ListenLoopback(uint16_t* port, int receive_buffer_bytes) {
  Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (receive_buffer_bytes > 0) {
    ::setsockopt(listener.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes,
                 sizeof receive_buffer_bytes);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  CHECK(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
  CHECK(::listen(listener.get(), 8) == 0);
  CHECK(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
  *port = ntohs(address.sin_port);
  return listener;
}

Descriptor AcceptOne(const Descriptor& listener) {
  return Descriptor(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
}

Descriptor ConnectLoopback(uint16_t port, int send_buffer_bytes) {
  Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (send_buffer_bytes > 0) {
    ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &send_buffer_bytes,
                 sizeof send_buffer_bytes);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  CHECK(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  return socket;
}

Bytes RandomBytes(Random& random, size_t count) {
  Bytes bytes(count);
  for (size_t i = 0; i < count; i += 8) {
    const uint64_t value = random();
    std::memcpy(&bytes[i], &value, std::min<size_t>(8, count - i));
  }
  return bytes;
}

bool Same(const Bytes& a, const Bytes& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

int OpenDescriptors() {
  DIR* directory = ::opendir("/proc/self/fd");
  int count = 0;
  while (::readdir(directory) != nullptr) count++;
  ::closedir(directory);
  return count;
}

TempDir::TempDir() {
  const char* parent = std::getenv("HOLDFAST_TEST_DIR");
  path_ = std::string(parent == nullptr ? "/dev/shm" : parent) + "/holdfast-test-XXXXXX";
  CHECK(::mkdtemp(path_.data()) != nullptr);
}

TempDir::~TempDir() { std::filesystem::remove_all(path_); }

GuestRam::GuestRam(uint64_t pages, uint32_t page_size, unsigned file_flags)
    : page_size_(page_size),
      file_(::memfd_create("guest-ram", MFD_CLOEXEC | file_flags)),
      dirty_(pages) {
  const size_t bytes = pages * page_size;
  CHECK(::ftruncate(file_.get(), static_cast<off_t>(bytes)) == 0);
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
  CHECK(base != MAP_FAILED);
  map_ = Mapping(base, bytes);
}

void GuestRam::Scribble(Random& random, uint64_t pages) {
  for (uint64_t i = 0; i < pages; i++) {
    const uint64_t index = random() % dirty_.size();
    dirty_[index] = true;
    if (random() % 4 == 0) {
      std::memset(page(index), 0, page_size_);
    } else {
      const Bytes bytes = RandomBytes(random, page_size_);
      std::memcpy(page(index), bytes.data(), bytes.size());
    }
  }
}

std::vector<PageRun> GuestRam::TakeDirty() {
  std::vector<PageRun> runs;
  for (uint64_t i = 0; i < dirty_.size(); i++) {
    if (!dirty_[i]) continue;
    if (!runs.empty() && runs.back().first_page + runs.back().pages == i) {
      runs.back().pages++;
    } else {
      runs.push_back({i, i, 1});
    }
    dirty_[i] = false;
  }
  return runs;
}

std::vector<PageRun> GuestRam::All() const {
  return {{0, 0, static_cast<uint32_t>(dirty_.size())}};
}

namespace {
constexpr char kHugePagesFile[] = "/proc/sys/vm/nr_hugepages";

uint64_t ReadHugePages() {
  std::ifstream file(kHugePagesFile);
  uint64_t count = 0;
  file >> count;
  return count;
}
}  // namespace

HugePages::HugePages(uint64_t count) : turn_(::open(kHugePagesFile, O_RDONLY | O_CLOEXEC)) {
  CHECK(turn_.valid() && ::flock(turn_.get(), LOCK_EX) == 0);
  before_ = ReadHugePages();
  std::ofstream(kHugePagesFile) << before_ + count;
  reserved_ = ReadHugePages() == before_ + count;
}

HugePages::~HugePages() { std::ofstream(kHugePagesFile) << before_; }

Backup::Backup(const std::string& host) {
  auto receiver = Receiver::Listen(host, 0, [this](const ReceiverEvent& event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(event);
    changed_.notify_all();
  });
  CHECK_OK(receiver);
  receiver_ = std::move(receiver).value();
}

Receiver::Session Backup::SessionFor(const std::string& path, uint64_t ram_bytes,
                                     uint32_t page_size) {
  Receiver::Session session;
  session.token = Token(7);
  session.ram_path = path;
  session.ram_bytes = ram_bytes;
  session.page_size = page_size;
  session.epoch_bytes_max = ram_bytes;
  session.device_bytes_max = 1 << 20;
  return session;
}

size_t Backup::Count(ReceiverEvent::Type type) {
  const std::lock_guard lock(mutex_);
  return static_cast<size_t>(std::count_if(
      events_.begin(), events_.end(), [type](const ReceiverEvent& e) { return e.type == type; }));
}

ReceiverEvent Backup::Await(ReceiverEvent::Type type, size_t n) {
  std::unique_lock lock(mutex_);
  ReceiverEvent found;
  const bool came = changed_.wait_for(lock, std::chrono::milliseconds(kDeadlineMs), [&] {
    size_t left = n;
    for (const ReceiverEvent& event : events_) {
      if (event.type == type && --left == 0) {
        found = event;
        return true;
      }
    }
    return false;
  });
  CHECK(came);
  return found;
}

std::vector<ReceiverEvent> Backup::Events() {
  const std::lock_guard lock(mutex_);
  return events_;
}

std::array<std::byte, 32> Token(uint8_t fill) {
  std::array<std::byte, 32> token;
  token.fill(static_cast<std::byte>(fill));
  return token;
}

Bytes ReadFile(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  CHECK(file.valid());
  struct stat about {};
  CHECK(::fstat(file.get(), &about) == 0);
  Bytes bytes(static_cast<size_t>(about.st_size));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    CHECK(got > 0);
    done += static_cast<size_t>(got);
  }
  return bytes;
}

Result<std::unique_ptr<EpochWriter>> ConnectWriter(uint16_t port, const EpochWriter::Hello& hello,
                                                   Strategy strategy, const CancelSignal& cancel,
                                                   unsigned streams) {
  auto writer = EpochWriter::Connect("127.0.0.1", port, hello, streams, 5'000, cancel);
  if (writer.ok()) writer.value()->UseStrategy(strategy);
  return writer;
}

Status SendEpoch(EpochWriter& writer, const GuestRam& ram, const std::vector<PageRun>& runs,
                 uint64_t epoch, const Bytes& device, const Bytes* prefix,
                 std::optional<int64_t> stopped_ns) {
  HF_TRY(writer.BeginEpoch(epoch));
  HF_TRY(writer.Pages(ram.source(), runs, true));
  if (prefix != nullptr) HF_TRY(writer.Prefix(*prefix));
  HF_TRY(writer.Device(device));
  HF_TRY(writer.Commit(stopped_ns));
  auto ack = writer.AwaitAck(epoch);
  if (!ack.ok()) return ack.error();
  return {};
}

Status SendRound(EpochWriter& writer, const GuestRam& ram, const std::vector<PageRun>& runs) {
  HF_TRY(writer.BeginRound());
  HF_TRY(writer.Pages(ram.source(), runs, false));
  return writer.EndRound();
}

Standby::Standby(const std::string& path) {
  listener_ = Descriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  CHECK(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  CHECK(::listen(listener_.get(), 1) == 0);
  thread_ = std::thread([this] {
    const Descriptor socket = AcceptOne(listener_);
    std::array<std::byte, 65536> chunk;
    ssize_t got;
    while ((got = ::recv(socket.get(), chunk.data(), chunk.size(), 0)) > 0) {
      bytes_.insert(bytes_.end(), chunk.begin(), chunk.begin() + got);
    }
  });
}

Bytes Standby::Received() {
  thread_.join();
  return bytes_;
}

Proxy::Proxy(uint16_t target, Options options)
    : target_(target),
      options_(std::move(options)),
      listener_(ListenLoopback(&port_, options_.buffer_bytes)),
      acceptor_([this] { Accept(); }) {}

Proxy::~Proxy() {
  stop_.Cancel();
  acceptor_.join();
  for (std::thread& forwarder : forwarders_) forwarder.join();
}

void Proxy::Accept() {
  for (;;) {
    pollfd waiting[2] = {{listener_.get(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}};
    ::poll(waiting, 2, -1);
    if (stop_.cancelled()) return;
    const bool victim = forwarders_.size() == options_.victim;
    forwarders_.emplace_back([this, victim, client = AcceptOne(listener_)]() mutable {
      Forward(std::move(client), victim);
    });
  }
}

void Proxy::Forward(Descriptor client, bool victim) {
  const Descriptor server = ConnectLoopback(target_);
  Bytes chunk(options_.chunk_bytes);
  uint64_t forwarded = 0;
  bool cut = false;
  const uint64_t bytes_max = victim ? options_.forward_bytes_max : ~uint64_t{0};
  while (forwarded < bytes_max && !cut) {
    pollfd fds[3] = {
        {client.get(), POLLIN, 0}, {server.get(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}};
    ::poll(fds, 3, -1);
    if (stop_.cancelled()) return;
    if (fds[1].revents != 0) {
      const ssize_t got = ::recv(server.get(), chunk.data(), chunk.size(), 0);
      if (got <= 0 || !WriteAll(client.get(), chunk.data(), static_cast<size_t>(got))) return;
    }
    if (fds[0].revents == 0) continue;
    const size_t want = std::min<uint64_t>(chunk.size(), bytes_max - forwarded);
    const ssize_t got = ::recv(client.get(), chunk.data(), want, 0);
    if (got <= 0) return;
    auto count = static_cast<size_t>(got);
    if (victim && options_.inspect) options_.inspect(forwarded, chunk.data(), count);
    if (victim && options_.pass) {
      const size_t passed = options_.pass(forwarded, chunk.data(), count);
      cut = passed < count;
      count = passed;
    }
    if (!WriteAll(server.get(), chunk.data(), count)) return;
    forwarded += count;
    if (options_.chunk_delay_us > 0) ::usleep(static_cast<useconds_t>(options_.chunk_delay_us));
  }
  // What came last must reach the receiver before the reset that closing with
  // unread bytes would cause: end that side in order.
  ::shutdown(server.get(), SHUT_WR);
  while (::recv(server.get(), chunk.data(), chunk.size(), 0) > 0) {
  }
}

RawClient::RawClient(uint16_t port) : socket_(ConnectLoopback(port)) {
  const timeval timeout{kDeadlineMs / 1000, 0};
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

void RawClient::Send(std::span<const std::byte> bytes) {
  (void)WriteAll(socket_.get(), bytes.data(), bytes.size());
}

Bytes RawClient::Drain() {
  Bytes all;
  std::array<std::byte, 4096> chunk;
  ssize_t got;
  while ((got = ::recv(socket_.get(), chunk.data(), chunk.size(), 0)) > 0) {
    all.insert(all.end(), chunk.begin(), chunk.begin() + got);
  }
  CHECK(got == 0 || errno == ECONNRESET);
  return all;
}

Bytes RawClient::Read(size_t bytes) {
  Bytes all(bytes);
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::recv(socket_.get(), all.data() + done, bytes - done, MSG_WAITALL);
    if (got < 0 && errno == EINTR) continue;  // a ring that this thread used before
    CHECK(got > 0);
    done += static_cast<size_t>(got);
  }
  return all;
}

}  // namespace holdfast::test
