// What tracing reads that others wrote: a guest's memory, its type information.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "trace/btf.h"
#include "trace/guest_kernel.h"
#include "trace/guest_memory.h"
#include "trace/guest_sampler.h"
#include "trace/sched_recorder.h"
#include "trace/tracefs.h"
#include "trace/tracepoint.h"

using namespace holdfast;

namespace {

// Type information as a compiler would write it, as far as it is asked for.
class BtfWriter {
 public:
  uint32_t Name(const std::string& text) {
    const auto at = static_cast<uint32_t>(strings_.size());
    strings_ += text + '\0';
    return at;
  }
  void Word(uint32_t word) { types_.append(reinterpret_cast<const char*>(&word), sizeof word); }
  // Members: name, type, offset in bits.
  struct Member {
    std::string name;
    uint32_t type;
    uint32_t bits;
  };
  uint32_t Struct(const std::string& name, const std::vector<Member>& members, bool bit_fields = false,
                  uint32_t kind = 4) {
    Word(name.empty() ? 0 : Name(name));
    Word((kind << 24) | static_cast<uint32_t>(members.size()) | (bit_fields ? 1u << 31 : 0));
    Word(64);
    for (const Member& member : members) {
      Word(member.name.empty() ? 0 : Name(member.name));
      Word(member.type);
      Word(member.bits);
    }
    return ++count_;
  }
  uint32_t Int() {
    Word(Name("int"));
    Word(1u << 24);
    Word(4);
    Word(32);
    return ++count_;
  }
  std::vector<std::byte> Bytes() const {
    std::string bytes;
    const auto word = [&](uint32_t value) {
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    };
    word(0x0001eb9f);
    word(24);
    word(0);
    word(static_cast<uint32_t>(types_.size()));
    word(static_cast<uint32_t>(types_.size()));
    word(static_cast<uint32_t>(strings_.size()));
    bytes += types_ + strings_;
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    return {begin, begin + bytes.size()};
  }

 private:
  std::string types_;
  std::string strings_ = std::string(1, '\0');
  uint32_t count_ = 0;
};

BtfWriter KernelTypes() {
  BtfWriter writer;
  const uint32_t number = writer.Int();
  writer.Struct("rq", {{"nr_running", number, 0}, {"curr", number, 256 * 8}});
  // task_struct hides its fields in an anonymous structure where the compiler randomizes them.
  const uint32_t inner = writer.Struct("", {{"pid", number, 0}, {"tgid", number, 32}, {"comm", number, 128}});
  writer.Struct("task_struct", {{"state", number, 0}, {"", inner, 64 * 8}});
  return writer;
}

// A machine's RAM with as much of a kernel in it as is looked for.
class FakeGuest {
 public:
  static constexpr uint64_t kRamBytes = 64 << 20;
  static constexpr uint64_t kImage = 12 << 20;  // where KASLR put it
  static constexpr uint64_t kPageOffset = 0xffff9a0040000000;
  static constexpr GuestSymbols kSymbols{.text = 0xffffffff9e000000,
                                         .linux_banner = 0xffffffff9e100040,
                                         .per_cpu_offset = 0xffffffff9e200000,
                                         .runqueues = 0x34a80,
                                         .start_btf = 0xffffffff9e300000,
                                         .stop_btf = 0xffffffff9e300000,
                                         .page_offset_base = 0xffffffff9e200800};

  FakeGuest() : file_(::memfd_create("guest", MFD_CLOEXEC)), symbols_(kSymbols) {
    CHECK(::ftruncate(file_.get(), kRamBytes) == 0);
    WriteText(Image(kSymbols.linux_banner), "Linux version 6.1.0 (test)\n");
    Write(Image(kSymbols.page_offset_base), kPageOffset);
    const auto btf = KernelTypes().Bytes();
    CHECK(::pwrite(file_.get(), btf.data(), btf.size(), static_cast<off_t>(Image(kSymbols.start_btf))) ==
          static_cast<ssize_t>(btf.size()));
    symbols_.stop_btf += btf.size();
    for (uint64_t cpu = 0; cpu < 2; ++cpu) {
      Write(Image(kSymbols.per_cpu_offset) + 8 * cpu, kPageOffset + Area(cpu));
    }
    // The boot CPU's idle task is part of the image.
    Task(Image(kSymbols.text) + 0x400000, 0, 0, "swapper/0");
    Task(0x300000, 812, 800, "worker");
    Run(0, kSymbols.text + 0x400000);
    Run(1, kPageOffset + 0x300000);
  }

  static uint64_t Image(uint64_t symbol) { return kImage + (symbol - kSymbols.text); }
  static uint64_t Area(uint64_t cpu) { return (40 + 2 * cpu) << 20; }

  template <typename T>
  void Write(uint64_t at, T value) const {
    CHECK(::pwrite(file_.get(), &value, sizeof value, static_cast<off_t>(at)) == sizeof value);
  }
  void WriteText(uint64_t at, const std::string& text) const {
    CHECK(::pwrite(file_.get(), text.data(), text.size() + 1, static_cast<off_t>(at)) > 0);
  }
  void Task(uint64_t at, int32_t tid, int32_t pid, const std::string& comm) const {
    Write(at + 64, tid);
    Write(at + 68, pid);
    WriteText(at + 80, comm);
  }
  void Run(uint64_t cpu, uint64_t task) const { Write(Area(cpu) + kSymbols.runqueues + 256, task); }

  GuestMemory Memory() const {
    return GuestMemory(Descriptor(::dup(file_.get())), {{0, kRamBytes, 0}});
  }
  const GuestSymbols& symbols() const { return symbols_; }

 private:
  Descriptor file_;
  GuestSymbols symbols_;
};

}  // namespace

TEST("01 a filter names neighbouring threads as a range") {
  CHECK(ThreadFilter({"pid"}, {7}) == "pid==7");
  CHECK(ThreadFilter({"pid"}, {9, 7, 8, 20}) == "(pid>=7&&pid<=9)||pid==20");
  CHECK(ThreadFilter({"prev_pid", "next_pid"}, {3, 4}) ==
        "(prev_pid>=3&&prev_pid<=4)||(next_pid>=3&&next_pid<=4)");
  CHECK(ThreadFilter({"pid"}, {5, 5}) == "pid==5");
}

TEST("02 members are found, also in anonymous structures and beside bit fields") {
  BtfWriter writer;
  const uint32_t number = writer.Int();
  const uint32_t either = writer.Struct("", {{"a", number, 0}, {"b", number, 0}}, false, 5);
  const uint32_t inner = writer.Struct("", {{"deep", number, 64}, {"", either, 128}});
  writer.Struct("outer", {{"first", number, 0}, {"", inner, 256}});
  writer.Struct("fields", {{"flag", number, (3u << 24) | 5}, {"word", number, 64}}, true);
  const auto btf = Btf::Parse(writer.Bytes());
  CHECK_OK(btf);
  CHECK_EQ(*btf.value().MemberOffset("outer", "first"), 0u);
  CHECK_EQ(*btf.value().MemberOffset("outer", "deep"), 40u);
  CHECK_EQ(*btf.value().MemberOffset("outer", "b"), 48u);
  CHECK_EQ(*btf.value().MemberOffset("fields", "word"), 8u);
  CHECK(!btf.value().MemberOffset("outer", "none"));
  CHECK(!btf.value().MemberOffset("none", "first"));
}

TEST("03 damaged type information is refused, or lacks something; it is never read beyond") {
  const auto whole = KernelTypes().Bytes();
  for (size_t size = 0; size < whole.size(); ++size) {
    CHECK_ERROR(Btf::Parse({whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size)}),
                ErrorCode::kUnsupported, "type information");
  }
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const uint8_t value : {0x00, 0x05, 0x7f, 0xff}) {
      auto damaged = whole;
      damaged[at] = std::byte{value};
      const auto btf = Btf::Parse(damaged);
      if (btf.ok()) (void)btf.value().MemberOffset("task_struct", "comm");
    }
  }
}

TEST("04 a structure that contains itself ends the search") {
  BtfWriter writer;
  writer.Struct("loop", {{"", 1, 0}});
  const auto btf = Btf::Parse(writer.Bytes());
  CHECK_OK(btf);
  CHECK(!btf.value().MemberOffset("loop", "member"));
}

TEST("05 physical memory is read by its ranges, and not beyond them") {
  const Descriptor file(::memfd_create("ram", MFD_CLOEXEC));
  CHECK(::ftruncate(file.get(), 8192) == 0);
  CHECK(::pwrite(file.get(), "low", 4, 0) == 4 && ::pwrite(file.get(), "high", 5, 4096) == 5);
  const GuestMemory memory(Descriptor(::dup(file.get())),
                           {{0, 4096, 0}, {0x100000000, 4096, 4096}});
  CHECK(memory.Text(0, 16) == "low");
  CHECK(memory.Text(0x100000000, 16) == "high");
  uint64_t word = 0;
  CHECK(memory.Read(0x100000ff8, word));
  CHECK(!memory.Read(0x100000ffc, word));
  CHECK(!memory.Read(4092, word));
  CHECK(!memory.Read(0x5000, word));
  CHECK_EQ(memory.end(), uint64_t{0x100001000});
}

TEST("06 a kernel is found wherever it lies, and what its CPUs run") {
  const FakeGuest guest;
  const auto memory = guest.Memory();
  const auto kernel = GuestKernel::Locate(memory, guest.symbols(), 2, CancelSignal());
  CHECK_OK(kernel);
  CHECK(kernel.value().banner() == "Linux version 6.1.0 (test)");
  const auto idle = kernel.value().Current(memory, 0);
  CHECK(idle && idle->tid == 0 && std::string(idle->comm.data()) == "swapper/0");
  const auto busy = kernel.value().Current(memory, 1);
  CHECK(busy && busy->tid == 812 && busy->pid == 800 && std::string(busy->comm.data()) == "worker");
}

TEST("07 symbols of another kernel, and damaged run queues, are refused") {
  const FakeGuest guest;
  const auto memory = guest.Memory();
  GuestSymbols moved = guest.symbols();
  moved.linux_banner += 64;
  CHECK_ERROR(GuestKernel::Locate(memory, moved, 2, CancelSignal()), ErrorCode::kUnsupported,
              "no kernel that these symbols fit");
  GuestSymbols wild = guest.symbols();
  wild.runqueues = 0x7fff00000000;
  CHECK_ERROR(GuestKernel::Locate(memory, wild, 2, CancelSignal()), ErrorCode::kUnsupported,
              "run queues");
  GuestSymbols endless = guest.symbols();
  endless.stop_btf = endless.start_btf + (1ull << 40);
  CHECK_ERROR(GuestKernel::Locate(memory, endless, 2, CancelSignal()), ErrorCode::kLimit, "BTF");
  guest.Write(FakeGuest::Image(FakeGuest::kSymbols.page_offset_base), uint64_t{12345});
  CHECK_ERROR(GuestKernel::Locate(memory, guest.symbols(), 2, CancelSignal()),
              ErrorCode::kUnsupported, "no kernel");
}

TEST("08 the sampler tells each change once, and names each process") {
  const FakeGuest guest;
  auto kernel = GuestKernel::Locate(guest.Memory(), guest.symbols(), 2, CancelSignal());
  CHECK_OK(kernel);
  GuestSampler sampler(guest.Memory(), std::move(kernel).value(),
                       {.vcpus = 2, .interval_ns = 100'000, .events_max = 100});
  const auto await_looks = [&] {
    for (const uint64_t until = sampler.Stats().looks + 3; sampler.Stats().looks < until;) ::usleep(100);
  };
  await_looks();
  guest.Run(0, FakeGuest::kPageOffset + 0x300000);
  await_looks();
  // exec: the same task under another name
  guest.Task(0x300000, 812, 800, "renamed");
  await_looks();
  sampler.Stop();
  const auto taken = sampler.Take();
  std::vector<std::string> of_first;
  for (const GuestEvent& event : taken.events) {
    CHECK(event.name < taken.names.size());
    if (event.vcpu == 0) of_first.push_back(taken.names[event.name]);
  }
  CHECK_EQ(of_first.size(), size_t{3});
  CHECK(of_first[0] == "swapper/0" && of_first[1] == "worker" && of_first[2] == "renamed");
  CHECK(sampler.Take().events.empty());
}

TEST("09 a full store counts what it leaves out") {
  const FakeGuest guest;
  auto kernel = GuestKernel::Locate(guest.Memory(), guest.symbols(), 2, CancelSignal());
  CHECK_OK(kernel);
  GuestSampler sampler(guest.Memory(), std::move(kernel).value(),
                       {.vcpus = 2, .interval_ns = 100'000, .events_max = 1});
  while (sampler.Stats().discarded == 0) ::usleep(100);
  sampler.Stop();
  CHECK_EQ(sampler.Take().events.size(), size_t{1});
}

namespace {

uint32_t NumberAfter(const std::string& text, const std::string& mark) {
  const size_t at = text.find(mark);
  CHECK(at != std::string::npos);
  return static_cast<uint32_t>(std::strtoul(text.c_str() + at + mark.size(), nullptr, 10));
}

std::string Format(const char* tracepoint) {
  const auto text = ReadTracefs("events/sched/" + std::string(tracepoint) + "/format");
  CHECK_OK(text);
  return text.value();
}

uint32_t OffsetOf(const std::string& format, const char* field) {
  return NumberAfter(format, std::string(" ") + field + ";\toffset:");
}

// How often this thread left its core.
uint64_t OwnSwitches() {
  rusage usage{};
  CHECK(::getrusage(RUSAGE_THREAD, &usage) == 0);
  return static_cast<uint64_t>(usage.ru_nvcsw + usage.ru_nivcsw);
}

Tracepoints KernelTracepoints() {
  const std::string on_switch = Format("sched_switch");
  const std::string on_migrate = Format("sched_migrate_task");
  const std::string on_wakeup = Format("sched_wakeup");
  return {.on_switch = {NumberAfter(on_switch, "ID: "), OffsetOf(on_switch, "prev_pid"),
                        OffsetOf(on_switch, "prev_state"), OffsetOf(on_switch, "next_pid")},
          .on_migrate = {NumberAfter(on_migrate, "ID: "), OffsetOf(on_migrate, "pid"),
                         OffsetOf(on_migrate, "orig_cpu"), OffsetOf(on_migrate, "dest_cpu")},
          .on_wakeup = {NumberAfter(on_wakeup, "ID: "), OffsetOf(on_wakeup, "pid"),
                        OffsetOf(on_wakeup, "target_cpu")}};
}

}  // namespace

TEST("10 the scheduler's events of a thread, taken while the recorder reads them as well") {
  SchedRecorder::Options options;
  options.threads = {::gettid()};
  for (long core = 0; core < ::sysconf(_SC_NPROCESSORS_ONLN); ++core) {
    options.cores.push_back(static_cast<uint32_t>(core));
  }
  options.tracepoints = KernelTracepoints();
  options.ring_bytes = 4096;  // the recorder wakes for every few events
  options.events_max = 100'000;
  auto started = SchedRecorder::Start(options);
  CHECK_OK(started);
  auto& recorder = *started.value();
  const uint64_t switches_before = OwnSwitches();
  uint64_t left = 0, came = 0, lost = 0;
  const auto count = [&] {
    for (const SchedEvent& event : recorder.Take()) {
      if (event.kind == SchedKind::kLost) lost += event.third;
      if (event.kind != SchedKind::kSwitch) continue;
      left += event.first == options.threads[0];
      came += event.second == options.threads[0];
    }
  };
  for (uint64_t turn = 0; turn < 500; ++turn) {
    ::usleep(100);
    if (turn % 50 == 0) count();
  }
  const uint64_t switches = OwnSwitches() - switches_before;
  recorder.Stop();
  count();
  const SchedRecorderStats stats = recorder.Stats();
  CHECK_EQ(lost, stats.lost);
  // As the kernel counts them; Stop adds some of its own.
  CHECK(switches > 0);
  CHECK(left + lost >= switches && came + lost >= switches);
  CHECK(left <= switches + 100);
  CHECK(stats.wakeups > 1);
  CHECK_EQ(stats.discarded, uint64_t{0});
  recorder.Stop();
  CHECK(recorder.Take().empty());
}

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
