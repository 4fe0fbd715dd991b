// The log of one disk as the addon reads it: from the ring that its disk server
// fills to the socket, and what the backup has received of it.
//
//   tail = received          sent              head
//     ├───────────────────────┼─────────────────┤
//       in the kernel's hands    to be sent
//
// One thread takes what is to be sent, another hears what was received; figures
// may be asked for on any.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "disk/ring.h"

namespace holdfast {

class LogReader {
 public:
  // What a former reader left is forgotten. Its connection must be gone: the kernel
  // may have read from there.
  static Result<std::unique_ptr<LogReader>> Open(const std::string& path, uint64_t image_bytes);
  LogReader(const LogReader&) = delete;
  LogReader& operator=(const LogReader&) = delete;
  ~LogReader();

  // The log begins where its server began to log, between two records: there it
  // set the tail, and nobody else has since. Before the first Take.
  Status Begin();

  // Where records are complete. kProtocol when what the ring says cannot be.
  Result<uint64_t> Head() const;

  // All writes that were answered are in this log: its server still logs, and is
  // the one whose ring this is.
  Status CheckLogging() const;

  struct Part {
    uint64_t lsn = 0;
    uint64_t bytes = 0;
  };
  // The next part to be sent, up to `end`, and no longer than that.
  Part Take(uint64_t end, uint64_t bytes_max);

  // The backup has everything below: its space is the server's again.
  Status Received(uint64_t lsn);

  const Ring& ring() const { return ring_; }
  const std::string& path() const { return path_; }
  uint64_t start() const { return start_.load(std::memory_order_acquire); }
  uint64_t sent() const { return sent_.load(std::memory_order_acquire); }
  uint64_t received() const { return received_.load(std::memory_order_acquire); }

 private:
  LogReader(Ring ring, std::string path, uint64_t start);

  const Ring ring_;
  const std::string path_;
  std::atomic<uint64_t> start_;
  std::atomic<uint64_t> sent_;
  std::atomic<uint64_t> received_;
};

}  // namespace holdfast
