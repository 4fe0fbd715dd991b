// The addon's place at a disk's ring: reads every record through a mapping of
// its own, verifies it, applies it to a copy of the disk and frees its space.
#pragma once

#include <functional>
#include <thread>

#include "disk/record.h"
#include "disk/ring.h"
#include "test/lab.h"

namespace holdfast::test {

class LogFollower {
 public:
  using Visit = std::function<void(const RecordHeader& header, std::span<const std::byte> data)>;

  explicit LogFollower(const std::string& ring_path, Visit visit = {})
      : ring_(OpenRing(ring_path)), visit_(std::move(visit)), copy_(ring_.image_bytes()) {}
  ~LogFollower() { Stop(); }

  const Ring& ring() const { return ring_; }

  // From the tail on, until Stop().
  void Start() {
    thread_ = std::thread([this] {
      uint64_t lsn = ring_.header().tail.load();
      while (!stopping_.load() || ring_.header().head.load() != lsn) {
        const uint64_t head = ring_.WaitForHead(lsn, 50);
        while (lsn < head) lsn += Take(lsn, head);
        ring_.Free(lsn);
      }
    });
  }

  // After everything that was published.
  void Stop() {
    if (!thread_.joinable()) return;
    stopping_.store(true);
    ring_.WakeReader();
    thread_.join();
  }

  const Bytes& copy() const { return copy_; }
  uint64_t records() const { return records_; }

 private:
  static Ring OpenRing(const std::string& path) {
    auto ring = Ring::Open(path);
    CHECK_OK(ring);
    return std::move(ring).value();
  }

  uint64_t Take(uint64_t lsn, uint64_t head) {
    RecordHeader header;
    std::memcpy(&header, ring_.At(lsn), sizeof header);
    CHECK_OK(CheckRecordHeader(header, lsn, ring_.image_bytes()));
    const uint64_t bytes = RecordBytes(header.kind, header.length);
    CHECK(lsn + bytes <= head);
    const bool writes = header.kind == RecordKind::kWrite;
    const std::span data(ring_.At(lsn) + sizeof header, writes ? header.length : 0);
    CHECK_OK(CheckRecordDigest(header, data));
    if (writes) {
      std::memcpy(copy_.data() + header.offset, data.data(), data.size());
      for (uint64_t at = sizeof header + header.length; at < bytes; at++) CHECK(ring_.At(lsn)[at] == std::byte{0});
    } else {
      std::memset(copy_.data() + header.offset, 0, header.length);
    }
    records_++;
    if (visit_) visit_(header, data);
    return bytes;
  }

  Ring ring_;
  Visit visit_;
  Bytes copy_;
  uint64_t records_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

// Waits until it is so.
template <typename Condition>
void Await(const char* what, const Condition& condition) {
  const double deadline_ms = MonotonicMs() + kDeadlineMs;
  while (!condition()) {
    if (MonotonicMs() > deadline_ms) Fail(__FILE__, __LINE__, std::string("never: ") + what);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace holdfast::test
