// The ring, as the disk server writes it: any number of threads append, each
// copies its own record, and the head passes over complete records only.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>

#include "base/result.h"
#include "disk/ring.h"

namespace holdfast {

class LogWriter {
 public:
  explicit LogWriter(Ring ring) : ring_(std::move(ring)) {}
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  const Ring& ring() const { return ring_; }
  bool logging() const { return ring_.header().logging.load() != 0; }
  // The VM is about to stop, or stopping. Of no account without a log: nobody
  // would take it back.
  bool stop_pending() const { return logging() && ring_.header().stop_pending.load() != 0; }

  // From now on what is appended is logged; what lay there is void. The answer is
  // the LSN of the first record to come.
  Result<uint64_t> Start();
  // Whoever waits for room goes on. When it returns nothing will be appended.
  void Stop();

  // Waits until half of the circle (all of it, while a stop is pending) has room,
  // then appends; nothing at all if logging is off, or ends meanwhile. A write of
  // more than kRecordDataBytesMax becomes several records.
  void Append(RecordKind kind, uint64_t offset, uint64_t length, std::span<const std::byte> data);

  // The head, once it has passed over everything that was appended before.
  uint64_t Settle();

  struct Stats {
    uint64_t logged_bytes;  // ever
    uint64_t used_bytes;
    uint64_t used_bytes_peak;
    uint64_t stalls;  // waits for room
    uint64_t stalled_us;
    bool stalled;  // somebody waits now
  };
  Stats stats();

 private:
  struct Copy {
    uint64_t end;
    bool done;
  };

  bool AppendOne(RecordKind kind, uint64_t offset, uint64_t length, std::span<const std::byte> data);
  bool HasRoom(uint64_t bytes) const;
  bool WaitForRoom(uint64_t bytes);  // false: logging has ended

  Ring ring_;

  // Held by the one who waits for room, so that small records don't starve a
  // large one; whoever comes later waits for this.
  std::mutex turn_;
  std::atomic<uint64_t> reserved_{0};  // written under turn_
  std::atomic<uint64_t> used_bytes_peak_{0};
  std::atomic<uint64_t> stalls_{0};
  std::atomic<uint64_t> stalled_us_{0};
  std::atomic<uint64_t> stalled_since_us_{0};  // 0: nobody waits

  std::mutex copies_mutex_;
  std::condition_variable published_;
  std::deque<Copy> copies_;  // reserved and not yet below the head, in order of LSN
};

}  // namespace holdfast
