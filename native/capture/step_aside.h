// Keeps the capturing thread off the core on which QEMU saves its device state.
//
//   QEMU's main thread   ── stop ─┬─ device state ──────► cont
//   capturing thread              └─ scan, copy ──►
//
// Both begin at the same moment, when `stop` is answered. Where no core is idle
// then, the scheduler may wake the capture on QEMU's own, before QEMU, and a
// thread that was preempted just now is moved to another core by nobody for
// milliseconds: the pause would be both of them one after the other, beside an
// idle core (seen with sched_switch on two cores, Linux 6.18).
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <optional>
#include <string_view>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

// Of a thread, in /proc/PID/task/TID/stat.
struct ThreadPlace {
  bool runnable = false;  // runs, or waits for its core
  int core = 0;
};
std::optional<ThreadPlace> ParseThreadPlace(std::string_view stat);

class MainThread {
 public:
  static Result<MainThread> Open(pid_t pid);

  // Nothing if it has ended.
  std::optional<ThreadPlace> Place() const;

 private:
  explicit MainThread(Descriptor stat) : stat_(std::move(stat)) {}
  Descriptor stat_;
};

// While it lives, the calling thread does not run on the core for which
// `neighbour` waited when it was made; if that was ours, and there is another.
class StepAside {
 public:
  explicit StepAside(const MainThread& neighbour);
  ~StepAside();
  StepAside(const StepAside&) = delete;
  StepAside& operator=(const StepAside&) = delete;

  bool moved() const { return before_.has_value(); }

 private:
  std::optional<cpu_set_t> before_;  // where we may run otherwise
};

}  // namespace holdfast
