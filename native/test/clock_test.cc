// The guest's clock: the timer section, the arithmetic, and QEMU's variable in
// another process, which a child of ours plays.

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <fstream>
#include <functional>

#include "guest/guest_clock.h"
#include "guest/standby_clock.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

// As in QEMU 7.2; `words` are between its icount_time_shift and the clock.
struct QemuTimers {
  int64_t ticks_prev;
  int64_t ticks_offset;
  uint32_t sequence;
  int32_t lock;
  int16_t enabled;
  int16_t shift;
  int64_t words[3];
  int64_t clock_offset;
};

// Global, as QEMU's is: in a child these are what is searched.
QemuTimers g_timers;
QemuTimers g_twin;

constexpr GuestTime kFrozen{0x1234567890, 0x987654321};

QemuTimers Stopped() {
  return {.ticks_prev = kFrozen.ticks - 5,
          .ticks_offset = kFrozen.ticks,
          .sequence = 8,
          .lock = 0,
          .enabled = 0,
          .shift = 0,
          .words = {},
          .clock_offset = kFrozen.clock_ns};
}

// A process that holds what `set` makes of the variables, and says on demand
// what they are.
class Qemu {
 public:
  explicit Qemu(const std::function<void()>& set) {
    int pipe_fds[2];
    CHECK(::pipe(pipe_fds) == 0);
    shared_ = static_cast<QemuTimers*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE,
                                              MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      set();
      char ready = 1;
      if (::write(pipe_fds[1], &ready, 1) != 1) ::_exit(1);
      for (;;) {
        *shared_ = g_timers;
        ::usleep(200);
        // Changed from outside, of which the compiler knows nothing.
        std::atomic_signal_fence(std::memory_order_seq_cst);
      }
    }
    char ready = 0;
    CHECK(::read(pipe_fds[0], &ready, 1) == 1);
    ::close(pipe_fds[0]);
    ::close(pipe_fds[1]);
  }
  ~Qemu() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(shared_, 4096);
  }
  Qemu(const Qemu&) = delete;
  Qemu& operator=(const Qemu&) = delete;

  pid_t pid() const { return pid_; }
  // What the process itself sees, at the latest after some of its turns.
  GuestTime Sees(const GuestTime& expected) const {
    GuestTime seen;
    for (int turn = 0; turn < 10'000; turn++) {
      seen = {reinterpret_cast<volatile QemuTimers*>(shared_)->ticks_offset,
              reinterpret_cast<volatile QemuTimers*>(shared_)->clock_offset};
      if (seen == expected) break;
      ::usleep(200);
    }
    return seen;
  }

 private:
  pid_t pid_ = -1;
  QemuTimers* shared_ = nullptr;
};

void PutBigEndian(Bytes& to, uint64_t value, int bytes) {
  for (int shift = (bytes - 1) * 8; shift >= 0; shift -= 8) to.push_back(std::byte(value >> shift));
}

Bytes SectionOf(const GuestTime& time, uint32_t id = 7) {
  Bytes section;
  PutBigEndian(section, 4, 1);
  PutBigEndian(section, id, 4);
  PutBigEndian(section, 5, 1);
  for (const char letter : std::string("timer")) section.push_back(std::byte(letter));
  PutBigEndian(section, 0, 4);
  PutBigEndian(section, 2, 4);
  PutBigEndian(section, static_cast<uint64_t>(time.ticks), 8);
  PutBigEndian(section, 0, 8);
  PutBigEndian(section, static_cast<uint64_t>(time.clock_ns), 8);
  PutBigEndian(section, 0x7e, 1);
  PutBigEndian(section, id, 4);
  return section;
}

Bytes Joined(std::initializer_list<Bytes> parts) {
  Bytes all;
  for (const Bytes& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::string WriteState(const TempDir& dir, const Bytes& state) {
  const std::string path = dir / "state";
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(state.data()), static_cast<std::streamsize>(state.size()));
  return path;
}

const Bytes kBefore(8, std::byte{4});
const Bytes kAfter(40, std::byte{0x7e});

TEST("timer section: found wherever it is, with its values, and nowhere else") {
  const Bytes state = Joined({kBefore, SectionOf(kFrozen), kAfter});
  const auto found = FindTimerSection(state);
  CHECK(found.has_value());
  CHECK_EQ(found->offset, kBefore.size());
  CHECK(found->time == kFrozen);
  CHECK(!TimerSectionAt(state, kBefore.size() + 1));
  CHECK(!TimerSectionAt(state, state.size()));
  CHECK(!TimerSectionAt(state, SIZE_MAX));
  CHECK(FindTimerSection(SectionOf({-1, -2}))->time == (GuestTime{-1, -2}));
}

TEST("timer section: damaged, cut short, doubled or with subsections is none") {
  const Bytes section = SectionOf(kFrozen);
  for (size_t bytes = 0; bytes < section.size(); bytes++) {
    CHECK(!FindTimerSection(std::span(section).first(bytes)));
  }
  // Every byte but the values, the unused word and the section's id.
  for (size_t at = 0; at < section.size(); at++) {
    const bool free_choice = at >= 19 && at < 43;
    Bytes damaged = section;
    damaged[at] ^= std::byte{0x40};
    CHECK_EQ(FindTimerSection(damaged).has_value(), free_choice);
  }
  CHECK(!FindTimerSection(Joined({section, SectionOf({1, 2}, 9)})));
  Bytes icount = section;
  icount[43] = std::byte{5};
  CHECK(!FindTimerSection(icount));
}

TEST("standby clock: goes on by the time since COMMIT came, and only that changes") {
  if (!HostClock::kCountsTicks) return;
  const Bytes before = Joined({kBefore, SectionOf(kFrozen), kAfter});
  Bytes state = before;
  const auto advanced = AdvanceStandbyClock(state, {.arrived = {1'000, 50}}, {251'000, 750'050});
  CHECK(advanced.has_value());
  CHECK_EQ(*advanced, int64_t{250'000});
  CHECK(FindTimerSection(state)->time ==
        (GuestTime{kFrozen.ticks + 750'000, kFrozen.clock_ns + 250'000}));
  SetTime(state, *FindTimerSection(state), kFrozen);
  CHECK(state == before);
}

TEST("standby clock: and by what the pause and sending took, at this host's rate") {
  if (!HostClock::kCountsTicks) return;
  Bytes state = Joined({kBefore, SectionOf(kFrozen), kAfter});
  const CommitTime commit{.arrived = {1'000, 50}, .age_ns = 7'000};
  CHECK_EQ(AdvanceStandbyClock(state, commit, {251'000, 750'050}).value_or(0), int64_t{257'000});
  CHECK(FindTimerSection(state)->time ==
        (GuestTime{kFrozen.ticks + 771'000, kFrozen.clock_ns + 257'000}));
}

TEST("standby clock: left as it is after an outage, with clocks that went back, without a section") {
  const Bytes before = Joined({kBefore, SectionOf(kFrozen), kAfter});
  Bytes state = before;
  CHECK(!AdvanceStandbyClock(state, {.arrived = {0, 0}}, {kClockAdvanceNsMax + 1, 5}));
  CHECK(!AdvanceStandbyClock(state, {.arrived = {10, 0}}, {9, 5}));
  CHECK(!AdvanceStandbyClock(state, {.arrived = {10, 7}}, {11, 6}));
  CHECK(!AdvanceStandbyClock(state, {.arrived = {10, 7}, .age_ns = 5}, {10, 7}));
  // Said by the other side: no sum may overflow.
  CHECK(!AdvanceStandbyClock(state, {.arrived = {0, 0}, .age_ns = kClockAdvanceNsMax}, {5, 5}));
  CHECK(!AdvanceStandbyClock(state, {.arrived = {0, 0}, .age_ns = ~uint64_t{0}}, {5, 5}));
  CHECK(state == before);
  Bytes none = kAfter;
  CHECK(!AdvanceStandbyClock(none, {.arrived = {0, 0}}, {5, 5}));
  CHECK(none == kAfter);
}

// A host whose ticks run at 3 per nanosecond.
HostClock At(int64_t ns) { return {ns, 3 * ns}; }

TEST("follower: thousands of pauses with any cont leave no more error than the last") {
  ClockFollower follower(At(0));
  int64_t now_ns = 1'000'000'000;
  const GuestTime anchor{-77, -5'000};
  GuestTime offset = anchor;
  uint64_t random = 1;
  for (int pause = 0; pause < 20'000; pause++) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    follower.Running(offset);
    now_ns += 17'000'000;
    const GuestTime frozen{offset.ticks + 3 * now_ns, offset.clock_ns + now_ns};
    const int64_t stopped_ns = now_ns;
    now_ns += 3'000'000;
    const auto target = follower.Target(frozen, stopped_ns, At(now_ns));
    CHECK(target.has_value());
    CHECK(target->clock_ns >= frozen.clock_ns && target->ticks >= frozen.ticks);
    follower.Advanced(*target, At(now_ns));
    now_ns += 150'000 + static_cast<int64_t>(random >> 44) % 100'000;  // cont
    offset = {target->ticks - 3 * now_ns, target->clock_ns - now_ns};
    CHECK(std::abs(offset.clock_ns - anchor.clock_ns) <= 150'000);
  }
  CHECK(follower.cont_ns() > 150'000 && follower.cont_ns() < 250'000);
}

TEST("follower: without an offset the pause counts from when the VM was stopped") {
  ClockFollower follower(At(0));
  const auto target = follower.Target(kFrozen, 1'000'000, At(4'000'000));
  CHECK(target.has_value());
  CHECK_EQ(target->clock_ns, kFrozen.clock_ns + 3'000'000 + follower.cont_ns());
  CHECK_EQ(target->ticks, kFrozen.ticks + 3 * (3'000'000 + follower.cont_ns()));
}

TEST("follower: time that was no pause stays lost, and the clock never goes back") {
  ClockFollower follower(At(0));
  follower.Running({0, 0});
  follower.Forget();
  // Stopped by somebody for a second: its own offset is the anchor from now on.
  follower.Running({-3'000'000'000, -1'000'000'000});
  const GuestTime frozen{3 * 9'000'000'000 - 3'000'000'000, 8'000'000'000};
  const auto target = follower.Target(frozen, 9'000'000'000, At(9'000'000'000));
  CHECK_EQ(target->clock_ns, frozen.clock_ns + follower.cont_ns());
  // Ahead of the anchor, as after a cont that was quicker than expected.
  const GuestTime ahead{frozen.ticks + 9'000'000, frozen.clock_ns + 3'000'000};
  CHECK(*follower.Target(ahead, 9'000'000'000, At(9'000'000'000)) == ahead);
}

TEST("follower: an outage is no pause, and the next one counts anew") {
  ClockFollower follower(At(0));
  follower.Running({0, 0});
  const GuestTime frozen{3'000, 1'000};
  CHECK(!follower.Target(frozen, 1'000, At(1'000 + 2 * kClockAdvanceNsMax)));
  const int64_t later = 5 * kClockAdvanceNsMax;
  const auto target = follower.Target(frozen, later - 1'000'000, At(later));
  CHECK_EQ(target->clock_ns, frozen.clock_ns + 1'000'000 + follower.cont_ns());
}

TEST("timers state: found in another process, and replaced") {
  if (!HostClock::kCountsTicks) return;
  const Qemu qemu([] { g_timers = Stopped(); });
  const auto state = TimersState::Locate(qemu.pid(), kFrozen);
  CHECK_OK(state);
  const auto contents = state.value().Read();
  CHECK_OK(contents);
  CHECK(contents.value().time == kFrozen);
  CHECK(!contents.value().running && contents.value().settled);
  const GuestTime later{kFrozen.ticks + 99, kFrozen.clock_ns + 33};
  CHECK_OK(state.value().Replace(kFrozen, later));
  CHECK(qemu.Sees(later) == later);
  // What is there now is not what the caller knows of: nothing is written.
  CHECK_ERROR(state.value().Replace(kFrozen, {1, 2}), ErrorCode::kUnsupported, "does not hold");
  CHECK(state.value().Read().value().time == later);
}

TEST("timers state: none, or two, are refused") {
  if (!HostClock::kCountsTicks) return;
  const Qemu none([] { g_timers = {}; });
  CHECK_ERROR(TimersState::Locate(none.pid(), kFrozen), ErrorCode::kUnsupported, "at 0 places");
  const Qemu two([] { g_timers = g_twin = Stopped(); });
  CHECK_ERROR(TimersState::Locate(two.pid(), kFrozen), ErrorCode::kUnsupported, "at 2 places");
  CHECK(!TimersState::Locate(-1, kFrozen).ok());
}

TEST("timers state: what runs, is locked, being written or counts instructions is not it") {
  if (!HostClock::kCountsTicks) return;
  const std::array<void (*)(), 5> spoils{
      [] { g_timers.enabled = 1; }, [] { g_timers.shift = 3; }, [] { g_timers.lock = 1; },
      [] { g_timers.sequence = 9; }, [] { g_timers.ticks_prev = kFrozen.ticks + 1; }};
  for (const auto spoil : spoils) {
    const Qemu qemu([spoil] {
      g_timers = Stopped();
      spoil();
    });
    CHECK_ERROR(TimersState::Locate(qemu.pid(), kFrozen), ErrorCode::kUnsupported, "at 0 places");
  }
}

TEST("guest clock: a pause's time is given back where file and memory agree, else nothing is written") {
  if (!HostClock::kCountsTicks) return;
  const TempDir dir;
  const Qemu qemu([] { g_timers = Stopped(); });
  GuestClock clock(qemu.pid());
  CHECK_OK(clock.BeforePause());
  const std::string path = WriteState(dir, Joined({kBefore, SectionOf(kFrozen), kAfter}));
  auto place = clock.Locate(path);
  CHECK_OK(place);
  clock.Found(place.value());
  const int64_t stopped_ns = HostClock::Now().ns - 3'000'000;
  const auto advanced = clock.Advance(path, stopped_ns);
  CHECK_OK(advanced);
  CHECK(advanced.value() >= 3'000'000);
  const GuestTime now{place.value().state.Read().value().time};
  CHECK_EQ(now.clock_ns, kFrozen.clock_ns + advanced.value());
  CHECK(now.ticks > kFrozen.ticks);
  // The file is of the pause before.
  CHECK_ERROR(clock.Advance(path, stopped_ns), ErrorCode::kUnsupported, "does not hold");
  // Elsewhere in the file, as after a hotplug.
  WriteState(dir, Joined({kBefore, kBefore, SectionOf(now), kAfter}));
  CHECK_OK(clock.Advance(path, stopped_ns));
  const GuestTime after = place.value().state.Read().value().time;
  CHECK(after.clock_ns >= now.clock_ns);
  WriteState(dir, kAfter);
  CHECK_ERROR(clock.Advance(path, stopped_ns), ErrorCode::kUnsupported, "no timer section");
  CHECK_ERROR(clock.Locate(path), ErrorCode::kUnsupported, "no timer section");
  CHECK(!clock.Advance(dir / "nothing", stopped_ns).ok());
  CHECK(place.value().state.Read().value().time == after);
}

TEST("backup: a standby's clock goes on if that is wished, and the checkpoint stays as it was") {
  if (!HostClock::kCountsTicks) return;
  const TempDir dir;
  Backup backup;
  const GuestRam ram(64, 4096);
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", ram.bytes())));
  const CancelSignal cancel;
  auto writer = ConnectWriter(backup->port(), {Token(7), 4096, ram.bytes()}, Strategy::kCopy, cancel);
  CHECK_OK(writer);
  const Bytes device = Joined({kBefore, SectionOf(kFrozen), kAfter});
  const int64_t pause_ns = 3'000'000'000;  // which COMMIT tells
  CHECK_OK(SendEpoch(*writer.value(), ram, ram.All(), 1, device, nullptr,
                     HostClock::Now().ns - pause_ns));
  const HostClock acknowledged = HostClock::Now();
  CHECK_OK(backup->Fence());
  ::usleep(20'000);
  const int64_t waited_ns = HostClock::Now().ns - acknowledged.ns;
  int64_t before_ns = pause_ns + waited_ns;  // what follows is later each time
  for (const char* attempt : {"first", "second"}) {
    Standby standby(dir / attempt);
    const auto written = backup->WriteState(dir / attempt, true);
    CHECK_OK(written);
    CHECK(written.value().clock_advanced_ns.value_or(0) >= before_ns);
    before_ns = *written.value().clock_advanced_ns;
    Bytes received = standby.Received();
    const auto section = FindTimerSection(received);
    CHECK(section.has_value());
    CHECK_EQ(section->time.clock_ns, kFrozen.clock_ns + before_ns);
    CHECK(section->time.ticks > kFrozen.ticks);
    SetTime(received, *section, kFrozen);
    CHECK(received == device);
  }
  Standby standby(dir / "standby");
  const auto written = backup->WriteState(dir / "standby");
  CHECK_OK(written);
  CHECK(!written.value().clock_advanced_ns);
  CHECK(standby.Received() == device);
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
