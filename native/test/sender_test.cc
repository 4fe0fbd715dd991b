// Every strategy by itself, on real sockets: small buffers, slow and dying
// readers, cancelling, exhausted memory, and the rule about reusing pages.

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "base/thread.h"
#include "send/completion_sender.h"
#include "send/fixed_buffers.h"
#include "send/page_sender.h"
#include "send/probe.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

constexpr Strategy kByReference[] = {Strategy::kSendfile, Strategy::kSplice, Strategy::kVmsplice,
                                     Strategy::kZerocopy, Strategy::kUring};

bool WithCompletions(Strategy strategy) {
  return strategy == Strategy::kZerocopy || strategy == Strategy::kUring;
}

// Can this kernel do it at all? Says so if not: such a test is skipped, not passed.
bool Available(Strategy strategy) {
  static const SenderProbe probe = ProbeSenders();
  const std::string& reason =
      strategy == Strategy::kUring ? probe.uring_reason : probe.zerocopy_reason;
  if (!WithCompletions(strategy) || reason.empty()) return true;
  std::printf(" SKIPPED for %s: %s", std::string(StrategyName(strategy)).c_str(), reason.c_str());
  return false;
}

struct Pair {
  Descriptor ours;
  Descriptor theirs;
};

// Connected TCP sockets; buffer bytes 0: the kernel's default.
Pair TcpPair(int send_buffer_bytes = 0, int receive_buffer_bytes = 0) {
  uint16_t port = 0;
  const Descriptor listener = ListenLoopback(&port, receive_buffer_bytes);
  Pair pair{ConnectLoopback(port, send_buffer_bytes), AcceptOne(listener)};
  CHECK(pair.theirs.valid());
  return pair;
}

// As the last frame of an epoch does: what was held back for more leaves.
void Push(StreamSocket& socket) {
  socket.SetCork(true);
  socket.SetCork(false);
}

// With buffers far smaller than what is sent, yet not so small that silly-window
// avoidance makes TCP wait for its persist timer at every segment.
Pair SmallTcpPair() { return TcpPair(16 << 10, 16 << 10); }

Pair SmallUnixPair() {
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const int small = 4096;
  ::setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

// Of whole pages, or of any bytes.
std::vector<Extent> RandomExtents(Random& random, uint64_t pages, bool whole_pages = true) {
  std::vector<Extent> extents;
  for (uint64_t page = 0; page < pages;) {
    const uint64_t count = std::min<uint64_t>(1 + random() % (random() % 8 == 0 ? 400 : 3),
                                              pages - page);
    Extent extent{page * 4096, count * 4096};
    if (!whole_pages) {
      extent.offset += random() % 2000;
      extent.bytes -= 2000 + random() % 2000;
    }
    if (random() % 2 == 0) extents.push_back(extent);
    page += count;
  }
  return extents;
}

void Append(Bytes& bytes, const GuestRam& ram, std::span<const Extent> extents) {
  for (const Extent& extent : extents) {
    const std::byte* from = ram.page(0) + extent.offset;
    bytes.insert(bytes.end(), from, from + extent.bytes);
  }
}

void ReceiveSlowly(const Descriptor& from, Bytes& received, uint64_t seed) {
  size_t done = 0;
  Random pace(seed);
  while (done < received.size()) {
    const size_t want = std::min<size_t>(received.size() - done, 1 + pace() % 60'000);
    const ssize_t got = ::recv(from.get(), received.data() + done, want, 0);
    CHECK(got > 0);
    done += static_cast<size_t>(got);
    if (pace() % 64 == 0) ::usleep(200);
  }
}

TEST("every strategy delivers the bytes exactly, through small buffers and a slow reader") {
  Random random(11);
  GuestRam ram(1500, 4096);
  ram.Scribble(random, 3000);
  for (const bool tcp : {true, false}) {
    for (const Strategy strategy : kAllStrategies) {
      if (!Available(strategy) || (!tcp && WithCompletions(strategy))) continue;
      for (uint64_t round = 0; round < 4; round++) {
        Pair pair = tcp ? SmallTcpPair() : SmallUnixPair();
        const CancelSignal cancel;
        StreamSocket socket(std::move(pair.ours), cancel);
        const auto sender = PageSender::Make(strategy);
        // Several sends, and bytes between them that go by other ways.
        std::vector<std::vector<Extent>> sends;
        Bytes header = RandomBytes(random, 40);
        Bytes expected;
        for (int i = 0; i < 3; i++) {
          const uint64_t pages = i == 0 ? 1500 : 1 + random() % 300;
          sends.push_back(RandomExtents(random, pages, round % 2 == 0));
          expected.insert(expected.end(), header.begin(), header.end());
          Append(expected, ram, sends.back());
        }
        Bytes received(expected.size());
        std::thread reader([&] { ReceiveSlowly(pair.theirs, received, round); });
        for (const auto& extents : sends) {
          iovec part{header.data(), header.size()};
          CHECK_OK(socket.SendAll({&part, 1}, true));
          CHECK_OK(sender->Send(ram.source(), extents, socket));
        }
        CHECK(socket.syscalls() > 0);
        CHECK_OK(sender->Finish(socket));
        reader.join();
        CHECK(Same(received, expected));
        const SenderCounters counters = sender->counters();
        CHECK_EQ(counters.reference_bytes + counters.copied_bytes,
                 expected.size() - 3 * header.size());
        CHECK((counters.completions > 0) == WithCompletions(strategy));
        if (!WithCompletions(strategy)) {
          CHECK((counters.copied_bytes > 0) == (strategy == Strategy::kCopy));
        }
      }
    }
  }
}

TEST("a socket that takes no pages by completion says so before anything is sent") {
  Random random(12);
  GuestRam ram(16, 4096);
  ram.Scribble(random, 50);
  const Extent all{0, ram.bytes()};
  for (const Strategy strategy : {Strategy::kZerocopy, Strategy::kUring}) {
    Pair pair = SmallUnixPair();
    const CancelSignal cancel;
    StreamSocket socket(std::move(pair.ours), cancel);
    const auto sender = PageSender::Make(strategy);
    for (int i = 0; i < 2; i++) {
      CHECK_ERROR(sender->Send(ram.source(), {&all, 1}, socket), ErrorCode::kUnsupported, "");
    }
    CHECK_OK(sender->Finish(socket));
    CHECK_EQ(sender->counters().fallbacks, 1u);
    std::byte one;
    CHECK(::recv(pair.theirs.get(), &one, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
  }
}

TEST("a source at an offset of its file") {
  Random random(12);
  GuestRam ram(64, 4096);
  ram.Scribble(random, 200);
  PageSource shifted = ram.source();
  shifted.file_offset = 16 * 4096;
  shifted.base += 16 * 4096;
  shifted.size -= 16 * 4096;
  const Extent extents[] = {{4096, 8192}, {4 * 4096, 4096}};
  for (const Strategy strategy : kAllStrategies) {
    if (!Available(strategy)) continue;
    Pair pair = SmallTcpPair();
    const CancelSignal cancel;
    Bytes received(3 * 4096);
    std::thread reader([&] {
      CHECK(::recv(pair.theirs.get(), received.data(), received.size(), MSG_WAITALL) ==
            static_cast<ssize_t>(received.size()));
    });
    StreamSocket socket(std::move(pair.ours), cancel);
    CHECK_OK(PageSender::Make(strategy)->Send(shifted, extents, socket));
    reader.join();
    CHECK(std::memcmp(received.data(), ram.page(17), 8192) == 0);
    CHECK(std::memcmp(received.data() + 8192, ram.page(20), 4096) == 0);
  }
}

TEST("a reader that dies is named, a cancelled send says so, a short source is an error") {
  Random random(13);
  GuestRam ram(2000, 4096);
  ram.Scribble(random, 4000);
  const Extent all{0, ram.bytes()};
  for (const Strategy strategy : kAllStrategies) {
    if (!Available(strategy)) continue;
    {
      Pair pair = SmallTcpPair();
      const CancelSignal cancel;
      StreamSocket socket(std::move(pair.ours), cancel);
      std::thread reader([&] {
        std::array<std::byte, 10'000> some;
        CHECK(::recv(pair.theirs.get(), some.data(), some.size(), MSG_WAITALL) > 0);
        pair.theirs.Close();
      });
      const auto sender = PageSender::Make(strategy);
      const Status sent = sender->Send(ram.source(), {&all, 1}, socket);
      reader.join();
      CHECK_ERROR(sent, ErrorCode::kPeerLost, "peer");
      // The reset has emptied the socket: everything comes back.
      CHECK_OK(sender->Finish(socket));
    }
    {
      Pair pair = SmallTcpPair();
      CancelSignal cancel;
      StreamSocket socket(std::move(pair.ours), cancel);
      std::thread canceller([&] {
        ::usleep(20'000);
        cancel.Cancel();
      });
      const auto sender = PageSender::Make(strategy);
      const Status sent = sender->Send(ram.source(), {&all, 1}, socket);
      canceller.join();
      CHECK_ERROR(sent, ErrorCode::kCancelled, "cancelled");
      if (WithCompletions(strategy)) {
        CHECK_ERROR(sender->Finish(socket), ErrorCode::kCancelled, "cancelled");
      }
    }
  }
  for (const Strategy strategy : {Strategy::kSendfile, Strategy::kSplice}) {
    Pair pair = SmallTcpPair();
    const CancelSignal cancel;
    StreamSocket socket(std::move(pair.ours), cancel);
    const Extent beyond{ram.bytes(), 4096};
    CHECK_ERROR(PageSender::Make(strategy)->Send(ram.source(), {&beyond, 1}, socket),
                ErrorCode::kSyscall, "shorter");
  }
}

// MSG_WAITALL alone may return with less: it is a wish.
bool ReadWhole(int socket, std::span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t got = ::recv(socket, to.data(), to.size(), MSG_WAITALL);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to = to.subspan(static_cast<size_t>(got));
  }
  return true;
}

// "No torn pages" (DESIGN part 3), first with the rule broken, then kept.
TEST("pages overwritten right after a send arrive changed, unless they were copied") {
  constexpr uint64_t kPages = 256;
  Random random(14);
  for (const Strategy strategy : kAllStrategies) {
    if (!Available(strategy)) continue;
    // All of it fits in the sender's buffer, and next to nothing in the reader's.
    Pair pair = TcpPair(4 << 20, 4096);
    const CancelSignal cancel;
    StreamSocket socket(std::move(pair.ours), cancel);
    GuestRam ram(kPages, 4096);
    for (uint64_t i = 0; i < kPages; i++) std::memset(ram.page(i), 'a', 4096);
    const auto sender = PageSender::Make(strategy);
    const Extent half{0, ram.bytes() / 4};  // within wmem_max, whatever its setting
    CHECK_OK(sender->Send(ram.source(), {&half, 1}, socket));
    Push(socket);
    for (uint64_t i = 0; i < kPages; i++) std::memset(ram.page(i), 'b', 4096);
    Bytes received(half.bytes);
    CHECK(ReadWhole(pair.theirs.get(), received));
    const auto changed = std::count(received.begin(), received.end(), std::byte{'b'});
    CHECK((changed > 0) == (strategy != Strategy::kCopy));
  }
}

TEST("pages overwritten after finish and acknowledgement never arrive changed") {
  Random random(15);
  for (const Strategy strategy : kByReference) {
    if (!Available(strategy)) continue;
    Pair pair = TcpPair(0, 4096);
    const CancelSignal cancel;
    StreamSocket socket(std::move(pair.ours), cancel);
    GuestRam ram(128, 4096);
    PageSource source = ram.source();
    source.pinnable = true;
    constexpr int kRounds = 60;
    std::thread reader([&] {
      Bytes received(ram.bytes());
      for (int round = 0; round < kRounds; round++) {
        CHECK(ReadWhole(pair.theirs.get(), received));
        const auto written = static_cast<std::byte>(round);
        CHECK(std::count(received.begin(), received.end(), written) ==
              static_cast<ptrdiff_t>(received.size()));
        CHECK(::send(pair.theirs.get(), &written, 1, MSG_NOSIGNAL) == 1);
      }
    });
    const auto sender = PageSender::Make(strategy);
    for (int round = 0; round < kRounds; round++) {
      std::memset(ram.page(0), round, ram.bytes());
      const Extent all{0, ram.bytes()};
      CHECK_OK(sender->Send(source, {&all, 1}, socket));
      Push(socket);
      std::byte acknowledged;
      CHECK_OK(socket.ReceiveAll({&acknowledged, 1}, kDeadlineMs));
      CHECK_OK(sender->Finish(socket));
    }
    reader.join();
  }
}

TEST("finish does not return while the peer has not taken the pages") {
  for (const Strategy strategy : {Strategy::kZerocopy, Strategy::kUring}) {
    if (!Available(strategy)) continue;
    Pair pair = TcpPair(4 << 20, 4096);
    CancelSignal cancel;
    StreamSocket socket(std::move(pair.ours), cancel);
    const GuestRam ram(64, 4096);
    const auto sender = PageSender::Make(strategy);
    const Extent all{0, ram.bytes()};
    CHECK_OK(sender->Send(ram.source(), {&all, 1}, socket));
    std::thread canceller([&] {
      ::usleep(50'000);
      cancel.Cancel();
    });
    CHECK_ERROR(sender->Finish(socket), ErrorCode::kCancelled, "cancelled");
    canceller.join();
  }
}

TEST("a sender may change threads, also when the one before has ended") {
  Random random(21);
  GuestRam ram(20, 4096);  // fits in the socket's buffers
  ram.Scribble(random, 40);
  const Extent all{0, ram.bytes()};
  for (const Strategy strategy : kAllStrategies) {
    if (!Available(strategy)) continue;
    Pair pair = TcpPair();
    const CancelSignal cancel;
    StreamSocket socket(std::move(pair.ours), cancel);
    const auto sender = PageSender::Make(strategy);
    Bytes received(3 * ram.bytes());
    Bytes expected;
    for (int i = 0; i < 3; i++) {
      Append(expected, ram, {&all, 1});
      // Read only when the thread has ended, so that it does with its pages still lent.
      std::thread([&] { CHECK_OK(sender->Send(ram.source(), {&all, 1}, socket)); }).join();
      if (i == 2) break;  // what is left is for Finish to wait for
      CHECK(::recv(pair.theirs.get(), received.data() + ram.bytes() * static_cast<size_t>(i),
                   ram.bytes(), MSG_WAITALL) == static_cast<ssize_t>(ram.bytes()));
    }
    Push(socket);
    std::thread reader([&] {
      const size_t rest = ram.bytes();
      CHECK(::recv(pair.theirs.get(), received.data() + 2 * rest, rest, MSG_WAITALL) ==
            static_cast<ssize_t>(rest));
    });
    CHECK_OK(sender->Finish(socket));
    reader.join();
    CHECK(Same(received, expected));
  }
}

// POLLERR is signalled whatever one waits for, as long as a notification is unread.
TEST("a wait for the peer does not spin on notifications") {
  if (!Available(Strategy::kZerocopy)) return;
  Pair pair = TcpPair();
  const CancelSignal cancel;
  StreamSocket socket(std::move(pair.ours), cancel);
  GuestRam ram(64, 4096);
  const auto sender = PageSender::Make(Strategy::kZerocopy);
  const Extent all{0, ram.bytes()};
  CHECK_OK(sender->Send(ram.source(), {&all, 1}, socket));
  Push(socket);
  std::thread reader([&] {
    Bytes received(ram.bytes());
    CHECK(::recv(pair.theirs.get(), received.data(), received.size(), MSG_WAITALL) > 0);
    ::usleep(500'000);
    CHECK(::send(pair.theirs.get(), received.data(), 1, MSG_NOSIGNAL) == 1);
  });
  const double cpu_ms = ThreadCpuMs();
  std::byte answer;
  CHECK_OK(socket.ReceiveAll({&answer, 1}, kDeadlineMs));
  // Not a measurement: a spinning wait takes all of the half second there is.
  CHECK(ThreadCpuMs() - cpu_ms < 100);
  reader.join();
  CHECK_EQ(socket.completions().calls_in_flight(), 0u);
}

// Sends `total` bytes to a reader that reads all of them, and compares.
SenderCounters SendMuch(Strategy strategy, const GuestRam& ram, bool pinnable, int sends) {
  Pair pair = TcpPair();
  const CancelSignal cancel;
  StreamSocket socket(std::move(pair.ours), cancel);
  PageSource source = ram.source();
  source.pinnable = pinnable;
  const auto sender = PageSender::Make(strategy);
  const Bytes expected = ram.Copy();
  std::thread reader([&] {
    Bytes received(expected.size());
    for (int i = 0; i < sends; i++) {
      CHECK(::recv(pair.theirs.get(), received.data(), received.size(), MSG_WAITALL) ==
            static_cast<ssize_t>(received.size()));
      CHECK(Same(received, expected));
    }
  });
  for (int i = 0; i < sends; i++) {
    // In pieces that cross the borders of registered buffers.
    for (uint64_t at = 0; at < ram.bytes(); at += 700 << 10) {
      const uint64_t bytes = std::min<uint64_t>(700 << 10, ram.bytes() - at);
      const Extent first{at, std::min<uint64_t>(4096, bytes)};
      const Extent rest{at + first.bytes, bytes - first.bytes};
      const Extent both[] = {first, rest};
      CHECK_OK(sender->Send(source, std::span(both).first(rest.bytes > 0 ? 2 : 1), socket));
    }
  }
  Push(socket);
  CHECK_OK(sender->Finish(socket));
  reader.join();
  return sender->counters();
}

uint64_t PinnedKilobytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmPin:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10);
  }
  CHECK(!"VmPin");
  return 0;
}

// A ring's memory is given back a moment after its descriptor was closed.
void AwaitPinned(uint64_t kilobytes) {
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  while (PinnedKilobytes() != kilobytes && MonotonicMs() < deadline_ms) ::usleep(1000);
  CHECK_EQ(PinnedKilobytes(), kilobytes);
}

TEST("staging registered with the ring, across its buffers, and given back") {
  if (!Available(Strategy::kUring)) return;
  Random random(16);
  const uint64_t pinned = PinnedKilobytes();
  GuestRam ram((2 * FixedBuffers::kChunkBytes + (3 << 20)) / 4096, 4096);
  ram.Scribble(random, 6000);
  SendMuch(Strategy::kUring, ram, /*pinnable=*/true, 3);
  AwaitPinned(pinned);
  SendMuch(Strategy::kUring, ram, /*pinnable=*/false, 1);
}

TEST("where the kernel copies it is told so, and the connection goes over to copying") {
  Random random(17);
  GuestRam ram(2000, 4096);
  ram.Scribble(random, 4000);
  for (const Strategy strategy : {Strategy::kZerocopy, Strategy::kUring}) {
    if (!Available(strategy)) continue;
    if (strategy == Strategy::kUring && !ProbeSenders().uring_usage_reports) continue;
    const SenderCounters counters = SendMuch(strategy, ram, false, 12);
    CHECK_EQ(counters.copied_bytes + counters.reference_bytes, 12 * ram.bytes());
    CHECK(counters.copied_bytes > counters.reference_bytes);
    CHECK(counters.completions >= ZeroCopyPolicy::kCopiedMax);
    CHECK(counters.fallbacks > 0);
  }
}

// In the calling thread alone: io_uring_setup fails with `failure`, as a
// container's filter makes it.
void ForbidRings(int failure) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(failure)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{std::size(program), program};
  CHECK(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
}

TEST("a ring that is forbidden or missing is refused with the reason, and nothing is sent") {
  if (!Available(Strategy::kUring)) return;
  struct Refusal {
    int failure;
    const char* reason;
  };
  for (const Refusal& refusal : {Refusal{EPERM, "permitted"}, Refusal{ENOSYS, "seccomp"}}) {
    std::thread confined([&] {
      ForbidRings(refusal.failure);
      const SenderProbe probe = ProbeSenders();
      CHECK(!probe.uring && probe.uring_reason.find(refusal.reason) != std::string::npos);
      Pair pair = TcpPair();
      const CancelSignal cancel;
      StreamSocket socket(std::move(pair.ours), cancel);
      const GuestRam ram(16, 4096);
      const Extent all{0, ram.bytes()};
      const auto sender = PageSender::Make(Strategy::kUring);
      CHECK_ERROR(sender->Send(ram.source(), {&all, 1}, socket), ErrorCode::kUnsupported,
                  refusal.reason);
      std::byte one;
      CHECK(::recv(pair.theirs.get(), &one, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
      CHECK_OK(sender->Finish(socket));
    });
    confined.join();
  }
}

// The thread's own: capabilities are per thread.
void DropIpcLock() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  CHECK(::syscall(SYS_capget, &header, data) == 0);
  data[0].effective &= ~(1u << CAP_IPC_LOCK);
  CHECK(::syscall(SYS_capset, &header, data) == 0);
}

TEST("locked memory exhausted: copied instead, and nothing is lost") {
  Random random(18);
  GuestRam ram(1500, 4096);
  ram.Scribble(random, 3000);
  rlimit before{};
  CHECK(::getrlimit(RLIMIT_MEMLOCK, &before) == 0);
  const rlimit low{64 << 10, before.rlim_max};
  CHECK(::setrlimit(RLIMIT_MEMLOCK, &low) == 0);
  for (const Strategy strategy : kByReference) {
    if (!Available(strategy)) continue;
    std::thread unprivileged([&] {
      DropIpcLock();
      const SenderCounters counters = SendMuch(strategy, ram, /*pinnable=*/true, 4);
      CHECK_EQ(counters.copied_bytes + counters.reference_bytes, 4 * ram.bytes());
      if (strategy == Strategy::kZerocopy) CHECK(counters.fallbacks > 0);
    });
    unprivileged.join();
  }
  CHECK(::setrlimit(RLIMIT_MEMLOCK, &before) == 0);
}

TEST("option memory exhausted: the error queue is emptied, and nothing is lost") {
  if (!Available(Strategy::kZerocopy)) return;
  Random random(19);
  GuestRam ram(1500, 4096);
  ram.Scribble(random, 3000);
  // net.core.optmem_max belongs to the network namespace since Linux 6.7; one of
  // the thread's own leaves the machine's as it is.
  std::thread apart([&] {
    if (::unshare(CLONE_NEWNET) != 0) {
      std::printf(" SKIPPED: no network namespace: %s", std::strerror(errno));
      return;
    }
    const Descriptor any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq loopback{};
    std::strcpy(loopback.ifr_name, "lo");
    loopback.ifr_flags = IFF_UP | IFF_RUNNING;
    CHECK(::ioctl(any.get(), SIOCSIFFLAGS, &loopback) == 0);
    std::ofstream setting("/proc/sys/net/core/optmem_max");
    setting << 1200 << std::flush;
    if (!setting) {
      std::printf(" SKIPPED: no optmem_max of the namespace's own");
      return;
    }
    const SenderCounters counters = SendMuch(Strategy::kZerocopy, ram, false, 3);
    CHECK_EQ(counters.copied_bytes + counters.reference_bytes, 3 * ram.bytes());
  });
  apart.join();
}

TEST("descriptors, threads and pinned memory are back after a thousand sends and every failure") {
  Random random(20);
  GuestRam ram(64, 4096);
  ram.Scribble(random, 200);
  PageSource source = ram.source();
  source.pinnable = true;
  const int descriptors = OpenDescriptors();
  const int counted = g_descriptors_open.load();
  const int threads = g_threads_open.load();
  const uint64_t pinned = PinnedKilobytes();
  for (const Strategy strategy : kAllStrategies) {
    if (!Available(strategy)) continue;
    {
      Pair pair = TcpPair();
      const CancelSignal cancel;
      StreamSocket socket(std::move(pair.ours), cancel);
      const auto sender = PageSender::Make(strategy);
      std::thread reader([&] {
        Bytes received(ram.bytes());
        while (::recv(pair.theirs.get(), received.data(), received.size(), 0) > 0) {
        }
      });
      const Extent all{0, ram.bytes()};
      for (int i = 0; i < 1000; i++) {
        CHECK_OK(sender->Send(source, {&all, 1}, socket));
      }
      CHECK_OK(sender->Finish(socket));
      ::shutdown(socket.fd(), SHUT_WR);
      reader.join();
    }
    for (int failure = 0; failure < 20; failure++) {
      Pair pair = SmallTcpPair();
      CancelSignal cancel;
      StreamSocket socket(std::move(pair.ours), cancel);
      socket.AbortOnClose();
      const auto sender = PageSender::Make(strategy);
      std::thread ender([&] {
        ::usleep(static_cast<useconds_t>(failure) * 100);
        failure % 2 == 0 ? cancel.Cancel() : pair.theirs.Close();
      });
      const Extent all{0, ram.bytes()};
      Status sent;
      while (sent.ok()) sent = sender->Send(source, {&all, 1}, socket);
      ender.join();
      const ErrorCode code = sent.error().code;
      CHECK(code == ErrorCode::kCancelled || code == ErrorCode::kPeerLost);
    }
    CHECK_EQ(OpenDescriptors(), descriptors);
    CHECK_EQ(g_descriptors_open.load(), counted);
    CHECK_EQ(g_threads_open.load(), threads);
    AwaitPinned(pinned);
  }
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
