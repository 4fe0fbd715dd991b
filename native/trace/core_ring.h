// The kernel's ring buffer of one core: perf events on the scheduler's
// tracepoints there, all into one ring, read without a system call.
//
//   kernel ──head──► [ ring, mapped ] ──tail──► Read
//
// Events that find the ring full are counted by the kernel; the count comes as
// a record of its own, before the next event that fits. What was lost since the
// last that fitted has no record: its count is asked for at the end.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "trace/sched_event.h"
#include "trace/tracepoint.h"

namespace holdfast {

class CoreRing {
 public:
  // `ring_bytes`: a power of two, at least a page. Nothing is recorded yet.
  static Result<CoreRing> Open(uint32_t core, uint64_t ring_bytes, const Tracepoints& tracepoints);

  Status Follow(const std::vector<pid_t>& threads);
  Status Enable();

  // Readable once the ring is half full.
  int fd() const { return events_.front().get(); }

  // All records that are there, oldest first. One thread at a time.
  void Read(const std::function<void(const SchedEvent&)>& sink);
  // The same, and after it what was lost and never told.
  void ReadLast(const std::function<void(const SchedEvent&)>& sink);

 private:
  CoreRing(uint32_t core, const Tracepoints& tracepoints) : core_(core), tracepoints_(tracepoints) {}

  Status OpenEvent(uint32_t tracepoint, uint64_t ring_bytes);
  void Deliver(const std::vector<std::byte>& record,
               const std::function<void(const SchedEvent&)>& sink);

  uint32_t core_;
  Tracepoints tracepoints_;
  std::vector<Descriptor> events_;  // switch, migrate, wakeup; the first owns the ring
  Mapping ring_;
  uint64_t lost_told_ = 0;
  std::vector<std::byte> record_;  // of Read, kept for its memory
};

}  // namespace holdfast
