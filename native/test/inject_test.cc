// System calls that are run inside another process, which a child of ours plays:
// one thread, which does not stop as long as it waits for a child of its own.

#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ctime>
#include <fstream>
#include <string>

#include "guest/inject.h"
#include "test/check.h"

namespace holdfast::test {
namespace {

constexpr int kSound = 42;

// As vfork(): the kernel lets no tracer stop it before that child has ended.
long CallThatDoesNotStop(long milliseconds) {
  const long pid = ::syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) {
    const timespec pause{milliseconds / 1000, milliseconds % 1000 * 1'000'000};
    ::nanosleep(&pause, nullptr);
    ::_exit(0);
  }
  return pid;
}

class Target {
 public:
  explicit Target(long stuck_ms) {
    CHECK(::pipe(said_) == 0);
    CHECK(::pipe(told_) == 0);
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // none is left of a test that failed
      ::_exit(Live(stuck_ms));
    }
    char byte = 0;
    CHECK(::read(said_[0], &byte, 1) == 1);
    while (stuck_ms > 0 && State() != 'D') ::usleep(1'000);
  }

  pid_t pid() const { return pid_; }

  // How it ends after its call has returned, and another one.
  int End() {
    CHECK(::write(told_[1], "x", 1) == 1);
    int status = 0;
    CHECK(::waitpid(pid_, &status, 0) == pid_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  char State() const {
    std::ifstream stat("/proc/" + std::to_string(pid_) + "/stat");
    std::string field;
    for (int index = 0; index < 3; index++) stat >> field;
    return field.front();
  }

  int Live(long stuck_ms) {
    if (::write(said_[1], "x", 1) != 1) return 1;
    if (stuck_ms > 0 && CallThatDoesNotStop(stuck_ms) <= 0) return 2;
    char byte = 0;
    if (::read(told_[0], &byte, 1) != 1 || byte != 'x') return 3;
    sigset_t blocked;
    if (::sigprocmask(SIG_SETMASK, nullptr, &blocked) != 0) return 4;
    return sigismember(&blocked, SIGTERM) == 0 ? kSound : 5;
  }

  int said_[2];
  int told_[2];
  pid_t pid_ = -1;
};

long PidSaidBy(const Target& target) {
  const auto answered = InjectSyscall(target.pid(), SYS_getpid, {});
  CHECK_OK(answered);
  return answered.value();
}

TEST("a thread that waits runs the call and waits on") {
  Target target(0);
  for (int time = 0; time < 20; time++) CHECK_EQ(PidSaidBy(target), target.pid());
  CHECK_EQ(target.End(), kSound);
}

TEST("a thread that does not stop at once is waited for") {
  Target target(350);
  const double started_ms = MonotonicMs();
  CHECK_EQ(PidSaidBy(target), target.pid());
  CHECK(MonotonicMs() - started_ms > 100);
  CHECK_EQ(PidSaidBy(target), target.pid());
  CHECK_EQ(target.End(), kSound);
}

TEST("one that does not stop is let go of") {
  Target target(3'000);
  const auto answered = InjectSyscall(target.pid(), SYS_getpid, {});
  // A sanitizer's own thread may have run it.
  if (!answered.ok()) CHECK_ERROR(answered, ErrorCode::kInject, "did not stop in time");
  CHECK_EQ(target.End(), kSound);
}

TEST("a process that has ended is told") {
  Target target(0);
  CHECK_EQ(target.End(), kSound);
  CHECK(!InjectSyscall(target.pid(), SYS_getpid, {}).ok());
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
