#include "guest/inject.h"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/descriptor.h"

namespace holdfast {
namespace {

constexpr double kInjectMsMax = 2000;      // all threads, all retries
constexpr double kThreadStopMsMax = 100;   // one thread to reach its stop, each time
// The call itself. The thread has our registers until it is over: to go away before
// would leave them there, so that this is for one that will never be.
constexpr double kCallMsMax = 10'000;
// Where the whole machine stands still, so does the thread: no more of it counts.
constexpr double kLookMsMax = 1;
constexpr size_t kThreadsMax = 64;         // threads considered per round
constexpr int kStepsMax = 16;              // stops seen while stepping over one instruction
constexpr size_t kTracerStackBytes = 256 * 1024;

void SleepMicroseconds(long microseconds) {
  const timespec pause{0, microseconds * 1000};
  ::nanosleep(&pause, nullptr);
}

// The main thread first: it sits in ppoll nearly all the time.
std::vector<pid_t> ThreadsOf(pid_t pid) {
  std::vector<pid_t> threads{pid};
  DIR* directory = ::opendir(("/proc/" + std::to_string(pid) + "/task").c_str());
  if (directory == nullptr) return threads;
  while (const dirent* entry = ::readdir(directory)) {
    const pid_t thread = std::atoi(entry->d_name);
    if (thread > 0 && thread != pid && threads.size() < kThreadsMax) threads.push_back(thread);
  }
  ::closedir(directory);
  return threads;
}

// One traced thread. The destructor leaves it running and untraced, whatever
// happened. Lives in the tracer process only.
class TracedThread {
 public:
  explicit TracedThread(pid_t thread) : thread_(thread) {}
  TracedThread(const TracedThread&) = delete;
  TracedThread& operator=(const TracedThread&) = delete;
  ~TracedThread() {
    // Not stopped: the tracer's exit detaches it, PTRACE_DETACH could not.
    if (seized_ && stopped_) ::ptrace(PTRACE_DETACH, thread_, nullptr, nullptr);
  }

  // To be called again for one that did not stop in time: it is ours, and will.
  Status Stop() {
    if (!seized_) HF_TRY(Seize());
    for (;;) {
      auto status = Wait(kThreadStopMsMax);
      if (!status.ok()) return status.error();
      if (status.value() >> 16 == PTRACE_EVENT_STOP) return {};
      // A signal was on its way: deliver it, our stop is still to come.
      const int signal = WSTOPSIG(status.value());
      stopped_ = false;
      ::ptrace(PTRACE_CONT, thread_, nullptr, reinterpret_cast<void*>(static_cast<long>(signal)));
    }
  }

  // Empty: the thread does not stand behind a `syscall` instruction.
  Result<std::optional<long>> Run(long number, const std::array<unsigned long, 6>& arguments) {
    user_regs_struct saved{};
    if (::ptrace(PTRACE_GETREGS, thread_, nullptr, &saved) != 0) {
      return Error::FromErrno("ptrace", "PTRACE_GETREGS", ErrorCode::kInject);
    }
    errno = 0;
    const long code = ::ptrace(PTRACE_PEEKTEXT, thread_, saved.rip - 2, nullptr);
    constexpr long kSyscallInstruction = 0x050f;
    if (errno != 0 || (code & 0xffff) != kSyscallInstruction) return std::optional<long>{};

    uint64_t mask_saved = 0;
    if (::ptrace(PTRACE_GETSIGMASK, thread_, sizeof mask_saved, &mask_saved) != 0) {
      return Error::FromErrno("ptrace", "PTRACE_GETSIGMASK", ErrorCode::kInject);
    }
    // A handler must not run on our borrowed registers. Signals the processor
    // raises stay open: a blocked SIGTRAP would kill the process.
    uint64_t mask = ~uint64_t{0};
    for (const int open : {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS}) {
      mask &= ~(uint64_t{1} << (open - 1));
    }
    ::ptrace(PTRACE_SETSIGMASK, thread_, sizeof mask, &mask);

    user_regs_struct borrowed = saved;
    borrowed.rip = saved.rip - 2;
    borrowed.rax = static_cast<unsigned long>(number);
    borrowed.orig_rax = ~0UL;  // else the kernel would restart the interrupted call first
    borrowed.rdi = arguments[0];
    borrowed.rsi = arguments[1];
    borrowed.rdx = arguments[2];
    borrowed.r10 = arguments[3];
    borrowed.r8 = arguments[4];
    borrowed.r9 = arguments[5];

    Result<long> outcome = Error::FromErrno("ptrace", "PTRACE_SETREGS", ErrorCode::kInject);
    if (::ptrace(PTRACE_SETREGS, thread_, nullptr, &borrowed) == 0) {
      outcome = StepOver(borrowed.rip, saved.rip);
      // With orig_rax and rax as they were, the kernel restarts the call (or
      // returns its result) exactly as after any other interruption.
      ::ptrace(PTRACE_SETREGS, thread_, nullptr, &saved);
    }
    ::ptrace(PTRACE_SETSIGMASK, thread_, sizeof mask_saved, &mask_saved);
    if (!outcome.ok()) return outcome.error();
    return std::optional<long>{outcome.value()};
  }

  bool is_seized() const { return seized_; }

 private:
  Status Seize() {
    if (::ptrace(PTRACE_SEIZE, thread_, nullptr, nullptr) != 0) {
      return Error::FromErrno("ptrace", "PTRACE_SEIZE of thread " + std::to_string(thread_),
                              ErrorCode::kInject);
    }
    seized_ = true;
    if (::ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr) != 0) {
      return Error::FromErrno("ptrace", "PTRACE_INTERRUPT", ErrorCode::kInject);
    }
    return {};
  }

  Result<int> Wait(double ms_max) {
    double waited_ms = 0;
    double looked_ms = MonotonicMs();
    for (;;) {
      int status = 0;
      const pid_t waited = ::waitpid(thread_, &status, __WALL | WNOHANG);
      if (waited == thread_) {
        if (WIFSTOPPED(status)) {
          stopped_ = true;
          return status;
        }
        seized_ = false;  // it ended
        return Error::Of(ErrorCode::kInject, "thread " + std::to_string(thread_) + " ended");
      }
      if (waited < 0 && errno != EINTR) {
        return Error::FromErrno("waitpid", "waiting for a traced thread", ErrorCode::kInject);
      }
      const double now_ms = MonotonicMs();
      waited_ms += std::min(now_ms - looked_ms, kLookMsMax);
      looked_ms = now_ms;
      if (waited_ms > ms_max) {
        return Error::Of(ErrorCode::kInject,
                         "thread " + std::to_string(thread_) + " did not stop in time");
      }
      SleepMicroseconds(10);
    }
  }

  Result<long> StepOver(unsigned long before, unsigned long after) {
    for (int step = 0; step < kStepsMax; ++step) {
      stopped_ = false;
      if (::ptrace(PTRACE_SINGLESTEP, thread_, nullptr, nullptr) != 0) {
        return Error::FromErrno("ptrace", "PTRACE_SINGLESTEP", ErrorCode::kInject);
      }
      auto status = Wait(kCallMsMax);
      if (!status.ok()) return status.error();
      user_regs_struct now{};
      if (::ptrace(PTRACE_GETREGS, thread_, nullptr, &now) != 0) {
        return Error::FromErrno("ptrace", "PTRACE_GETREGS", ErrorCode::kInject);
      }
      if (now.rip == after) return static_cast<long>(now.rax);
      if (now.rip != before) break;  // never seen: leave the loop, restore, report
    }
    return Error::Of(ErrorCode::kInject, "the injected system call did not complete");
  }

  const pid_t thread_;
  bool seized_ = false;
  bool stopped_ = false;
};

struct Injection {
  pid_t pid;
  long number;
  const std::array<unsigned long, 6>& arguments;
  Result<long> outcome = Error::Of(ErrorCode::kInject, "not run");
};

Result<long> InjectAsTracer(const Injection& injection) {
  const double deadline_ms = MonotonicMs() + kInjectMsMax;
  Error last = Error::Of(ErrorCode::kInject, "no thread was inside a system call");
  std::map<pid_t, TracedThread> late;  // about to stop
  for (;;) {
    for (const pid_t thread : ThreadsOf(injection.pid)) {
      const auto traced = late.try_emplace(thread, thread).first;
      const Status stopped = traced->second.Stop();
      if (!stopped.ok()) {
        last = stopped.error();
        if (last.sys_errno == EPERM) return last;  // more tries give no more rights
        if (!traced->second.is_seized()) late.erase(traced);
        continue;
      }
      auto ran = traced->second.Run(injection.number, injection.arguments);
      late.erase(traced);
      if (!ran.ok()) return ran.error();
      if (ran.value().has_value()) return *ran.value();
    }
    if (::kill(injection.pid, 0) != 0 && errno == ESRCH) {
      return Error::FromErrno("kill", "process " + std::to_string(injection.pid) + " is gone",
                              ErrorCode::kInject);
    }
    if (MonotonicMs() > deadline_ms) return last;
    SleepMicroseconds(1000);
  }
}

int TracerMain(void* argument) {
  auto* injection = static_cast<Injection*>(argument);
  injection->outcome = InjectAsTracer(*injection);
  return 0;
}

}  // namespace

Result<long> InjectSyscall(pid_t pid, long number,
                           const std::array<unsigned long, 6>& arguments) {
  void* stack = ::mmap(nullptr, kTracerStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return Error::FromErrno("mmap", "stack of the tracer");
  const Mapping stack_owner(stack, kTracerStackBytes);

  // Our data-plane threads run with all signals blocked, and the tracer
  // inherits that: a Ctrl-C cannot stop it half way.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  Injection injection{pid, number, arguments};
  // No exit signal: node's SIGCHLD handling never learns of it.
  const pid_t tracer = ::clone(TracerMain, stack_owner.data() + kTracerStackBytes,
                               CLONE_VM | CLONE_VFORK, &injection);
  const int clone_errno = errno;
  if (tracer > 0) {
    while (::waitpid(tracer, nullptr, __WALL) < 0 && errno == EINTR) continue;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (tracer < 0) {
    errno = clone_errno;
    return Error::FromErrno("clone", "starting the tracer", ErrorCode::kInject);
  }
  return std::move(injection.outcome);
}

}  // namespace holdfast
