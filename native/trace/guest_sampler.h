// Looks at a guest's run queues at a fixed rate, and keeps what changed.
//
// What came and went between two looks is not seen; a change is at most one
// interval older than its time says. Looks that come late are counted.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "base/thread.h"
#include "trace/guest_kernel.h"
#include "trace/guest_memory.h"

namespace holdfast {

// From this time on the process runs on the vCPU; lib/trace/guest-events.ts
// reads this layout.
struct GuestEvent {
  uint64_t time_ns = 0;  // CLOCK_MONOTONIC
  uint16_t vcpu = 0;
  uint16_t reserved = 0;
  int32_t tid = 0;
  int32_t pid = 0;
  uint32_t name = 0;  // index into the names
};
static_assert(sizeof(GuestEvent) == 24);

struct GuestSamplerStats {
  uint64_t looks = 0;
  uint64_t late = 0;       // by more than an interval: the looks in between were left out
  uint64_t unread = 0;     // vCPUs' run queues that changed too fast, or could not be read
  uint64_t discarded = 0;  // changes that found the store full
};

class GuestSampler {
 public:
  struct Options {
    uint32_t vcpus = 0;
    uint64_t interval_ns = 0;
    uint64_t events_max = 0;
  };
  struct Taken {
    std::vector<GuestEvent> events;
    std::vector<std::string> names;  // all since the start
  };

  GuestSampler(GuestMemory memory, GuestKernel kernel, const Options& options);
  ~GuestSampler();
  GuestSampler(const GuestSampler&) = delete;
  GuestSampler& operator=(const GuestSampler&) = delete;

  const std::string& banner() const { return kernel_.banner(); }
  Taken Take();
  GuestSamplerStats Stats() const;
  void Stop();  // idempotent

 private:
  void Run();
  void Look(uint64_t now_ns);
  uint32_t NameOf(const GuestTask& task);

  const GuestMemory memory_;
  const GuestKernel kernel_;
  const Options options_;
  CancelSignal cancel_;

  mutable std::mutex mutex_;  // guards the rest
  std::vector<GuestEvent> last_;  // of each vCPU; time 0: none
  std::vector<GuestEvent> events_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, uint32_t> name_numbers_;
  GuestSamplerStats stats_;

  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
