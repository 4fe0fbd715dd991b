// Records what the scheduler does with some threads, on all cores.
//
//   kernel ──► ring per core ──(half full: wakes)──► thread ──► store ──► Take
//
// The thread sleeps in epoll until a ring is half full: recording costs the
// machine only the events themselves. What is still in the rings is read by
// whoever takes. The store is bounded: full, it keeps the earliest events or
// the latest, and counts the others.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "base/thread.h"
#include "output/poller.h"
#include "trace/core_ring.h"

namespace holdfast {

struct SchedRecorderStats {
  uint64_t events = 0;     // that were read from the rings
  uint64_t lost = 0;       // that found a ring full, as the kernel counted
  uint64_t discarded = 0;  // that found the store full, or were pushed out of it
  uint64_t wakeups = 0;    // of the thread
  bool full = false;
};

class SchedRecorder {
 public:
  struct Options {
    std::vector<pid_t> threads;
    std::vector<uint32_t> cores;
    Tracepoints tracepoints;
    uint64_t ring_bytes = 0;  // per core
    uint64_t events_max = 0;
    bool keep_latest = false;
  };

  static Result<std::unique_ptr<SchedRecorder>> Start(const Options& options);
  ~SchedRecorder();
  SchedRecorder(const SchedRecorder&) = delete;
  SchedRecorder& operator=(const SchedRecorder&) = delete;

  // All that was recorded since the last call, by time. Any thread.
  std::vector<SchedEvent> Take();
  SchedRecorderStats Stats() const;

  // Nothing is recorded from then on. Idempotent.
  void Stop();

 private:
  SchedRecorder(std::vector<CoreRing> rings, const Options& options)
      : events_max_(options.events_max), keep_latest_(options.keep_latest), rings_(std::move(rings)) {}

  Status Begin();
  void Run();
  void ReadRings();  // under the mutex
  void Store(const SchedEvent& event);

  const uint64_t events_max_;
  const bool keep_latest_;
  CancelSignal cancel_;
  Poller poller_;

  mutable std::mutex mutex_;  // guards the rest
  std::vector<CoreRing> rings_;
  std::deque<SchedEvent> store_;
  SchedRecorderStats stats_;

  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
