#include "nbdkit/log_writer.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/futex.h"
#include "disk/record.h"

namespace holdfast {
namespace {

uint64_t NowUs() { return static_cast<uint64_t>(MonotonicMs() * 1e3); }

}  // namespace

Result<uint64_t> LogWriter::Start() {
  Stop();
  HF_TRY(ring_.Reserve());
  const std::lock_guard turn(turn_);
  RingHeader& shared = ring_.header();
  shared.tail.store(reserved_.load());
  shared.logging.store(1);
  return reserved_.load();
}

void LogWriter::Stop() {
  RingHeader& shared = ring_.header();
  shared.logging.store(0);
  shared.stop_pending.store(0);
  ring_.WakeWriters();
  {
    const std::lock_guard turn(turn_);  // the last one that saw logging on has reserved
  }
  Settle();
  ring_.WakeReader();
}

void LogWriter::Append(RecordKind kind, uint64_t offset, uint64_t length,
                       std::span<const std::byte> data) {
  if (kind != RecordKind::kWrite) {
    AppendOne(kind, offset, length, {});
    return;
  }
  for (uint64_t done = 0; done < length;) {
    const uint64_t part = std::min(kRecordDataBytesMax, length - done);
    if (!AppendOne(kind, offset + done, part, data.subspan(done, part))) return;
    done += part;
  }
}

bool LogWriter::AppendOne(RecordKind kind, uint64_t offset, uint64_t length,
                          std::span<const std::byte> data) {
  const uint64_t bytes = RecordBytes(kind, length);
  uint64_t lsn = 0;
  Copy* copy = nullptr;
  {
    const std::lock_guard turn(turn_);
    if (!logging() || !WaitForRoom(bytes)) return false;
    lsn = reserved_.load(std::memory_order_relaxed);
    reserved_.store(lsn + bytes);
    const uint64_t used = lsn + bytes - ring_.header().tail.load();
    if (used > used_bytes_peak_.load(std::memory_order_relaxed)) used_bytes_peak_.store(used);
    const std::lock_guard copies(copies_mutex_);
    copy = &copies_.emplace_back(Copy{lsn + bytes, false});
  }

  std::byte* const target = ring_.At(lsn);
  std::byte* const payload = target + sizeof(RecordHeader);
  if (!data.empty()) std::memcpy(payload, data.data(), data.size());
  const uint64_t padding = bytes - sizeof(RecordHeader) - data.size();
  if (padding > 0) std::memset(payload + data.size(), 0, padding);
  // Over the copy: it is in the cache.
  const RecordHeader header = MakeRecord(kind, lsn, offset, length, std::span(payload, data.size()));
  std::memcpy(target, &header, sizeof header);

  const std::lock_guard copies(copies_mutex_);
  copy->done = true;
  if (!copies_.front().done) return true;  // its owner publishes this one, too
  uint64_t head = 0;
  while (!copies_.empty() && copies_.front().done) {
    head = copies_.front().end;
    copies_.pop_front();
  }
  ring_.Publish(head);
  published_.notify_all();
  return true;
}

bool LogWriter::HasRoom(uint64_t bytes) const {
  const RingHeader& shared = ring_.header();
  const uint64_t limit = shared.stop_pending.load() != 0 ? ring_.ring_bytes() : ring_.ring_bytes() / 2;
  return reserved_.load(std::memory_order_relaxed) + bytes - shared.tail.load() <= limit;
}

bool LogWriter::WaitForRoom(uint64_t bytes) {
  if (HasRoom(bytes)) return true;
  const uint64_t started_us = NowUs();
  stalls_.fetch_add(1);
  stalled_since_us_.store(started_us);
  RingHeader& shared = ring_.header();
  shared.tail_waits.fetch_add(1);
  while (logging()) {
    const uint32_t wakes = shared.tail_wakes.load();
    if (HasRoom(bytes) || !logging()) break;
    FutexWait(shared.tail_wakes, wakes, -1);
  }
  shared.tail_waits.fetch_sub(1);
  stalled_since_us_.store(0);
  stalled_us_.fetch_add(NowUs() - started_us);
  return logging();
}

uint64_t LogWriter::Settle() {
  const uint64_t end = reserved_.load();
  std::unique_lock copies(copies_mutex_);
  published_.wait(copies, [&] { return ring_.header().head.load() >= end; });
  return ring_.header().head.load();
}

LogWriter::Stats LogWriter::stats() {
  const RingHeader& shared = ring_.header();
  const uint64_t tail = shared.tail.load();
  const uint64_t reserved = reserved_.load();
  const uint64_t since_us = stalled_since_us_.load();
  return {.logged_bytes = reserved,
          .used_bytes = logging() ? reserved - tail : 0,
          .used_bytes_peak = used_bytes_peak_.load(),
          .stalls = stalls_.load(),
          .stalled_us = stalled_us_.load() + (since_us != 0 ? NowUs() - since_us : 0),
          .stalled = since_us != 0};
}

}  // namespace holdfast
