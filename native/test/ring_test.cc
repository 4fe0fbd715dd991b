// The log between the disk server and the addon: records, the circle, who waits
// for whom, and the order of overlapping changes.

#include <fcntl.h>
#include <unistd.h>

#include <latch>
#include <semaphore>

#include "nbdkit/flush_debt.h"
#include "nbdkit/log_writer.h"
#include "nbdkit/range_lock.h"
#include "test/log_follower.h"

namespace holdfast::test {
namespace {

constexpr uint64_t kImage = 64 << 20;
constexpr uint64_t kHalf = kRingBytesMin / 2;

struct Log {
  TempDir dir;
  std::string path = dir / "ring";
  LogWriter writer{Create(path)};

  static Ring Create(const std::string& path) {
    auto ring = Ring::Create(path, kRingBytesMin, kImage);
    CHECK_OK(ring);
    return std::move(ring).value();
  }
  void Write(uint64_t offset, const Bytes& bytes) {
    writer.Append(RecordKind::kWrite, offset, bytes.size(), bytes);
  }
};

TEST("record: its bytes are these, for ever") {
  Bytes data(5, std::byte{0x5a});
  const RecordHeader header = MakeRecord(RecordKind::kWrite, 4096, 512, data.size(), data);
  CHECK_EQ(header.digest, 7758063262005824922ULL);
  CHECK_EQ(RecordBytes(header.kind, header.length), 48);
  CHECK_EQ(RecordBytes(RecordKind::kTrim, 1 << 30), 40);
  CHECK_OK(CheckRecordHeader(header, 4096, kImage));
  CHECK_OK(CheckRecordDigest(header, data));
  data[4] = std::byte{0x5b};
  CHECK_ERROR(CheckRecordDigest(header, data), ErrorCode::kChecksum, "LSN 4096");
}

TEST("record: what is none is told from one") {
  const RecordHeader good = MakeRecord(RecordKind::kZero, 80, kImage - 4096, 4096, {});
  CHECK_OK(CheckRecordHeader(good, 80, kImage));
  CHECK_ERROR(CheckRecordHeader(good, 120, kImage), ErrorCode::kProtocol, "another position");
  CHECK_ERROR(CheckRecordHeader(good, 80, kImage - 1), ErrorCode::kProtocol, "beyond");
  const auto refused = [&](const auto& change, const char* why) {
    RecordHeader header = good;
    change(header);
    CHECK_ERROR(CheckRecordHeader(header, 80, kImage), ErrorCode::kProtocol, why);
    CHECK_ERROR(CheckRecordDigest(header, {}), ErrorCode::kChecksum, "digest");
  };
  refused([](RecordHeader& header) { header.magic++; }, "magic");
  refused([](RecordHeader& header) { header.zero[1] = 1; }, "reserved");
  refused([](RecordHeader& header) { header.kind = RecordKind{9}; }, "unknown kind");
  refused([](RecordHeader& header) { header.length = 0; }, "empty");
  refused([](RecordHeader& header) { header.offset = ~uint64_t{0}; }, "beyond");
  refused(
      [](RecordHeader& header) {
        header.kind = RecordKind::kWrite;
        header.offset = 0;
        header.length = kRecordDataBytesMax + 1;
      },
      "longer");
}

TEST("ring: many writers, many laps, every record whole and in its writer's order") {
  Log log;
  std::array<uint64_t, 4> next{};
  std::array<Bytes, 4> written;
  LogFollower follower(log.path, [&](const RecordHeader& header, std::span<const std::byte> data) {
    // The writer's number, then its count of writes.
    const uint64_t own = header.offset / (kImage / 4);
    uint64_t count = 0;
    CHECK(data.size() >= sizeof count);
    std::memcpy(&count, data.data(), sizeof count);
    CHECK_EQ(count, next[own]);
    next[own]++;
  });
  CHECK_OK(log.writer.Start());
  follower.Start();
  std::vector<std::thread> threads;
  for (uint64_t own = 0; own < 4; own++) {
    threads.emplace_back([&log, own] {
      Random random(60 + own);
      for (uint64_t count = 0; count < 300; count++) {
        const uint64_t size_max = random() % 16 == 0 ? kRecordDataBytesMax : 20'000;
        Bytes bytes(sizeof count + random() % (size_max - sizeof count));
        std::memcpy(bytes.data(), &count, sizeof count);
        log.Write(own * (kImage / 4) + random() % 100, bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  follower.Stop();
  CHECK_EQ(follower.records(), 1200);
  for (const uint64_t count : next) CHECK_EQ(count, 300);
  const LogWriter::Stats stats = log.writer.stats();
  CHECK(stats.logged_bytes > 4 * kRingBytesMin && stats.used_bytes == 0);
  CHECK(stats.used_bytes_peak <= kHalf);
}

TEST("ring: a large write is several records, the rest is none where nothing is logged") {
  Log log;
  Bytes large(kRecordDataBytesMax + 100, std::byte{3});
  log.Write(0, large);  // not logging
  CHECK_EQ(log.writer.Settle(), 0);
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  LogFollower follower(log.path, [&](const RecordHeader& header, std::span<const std::byte>) {
    seen.emplace_back(header.offset, header.length);
  });
  const auto started = log.writer.Start();
  CHECK_OK(started);
  CHECK_EQ(started.value(), 0);
  follower.Start();
  log.Write(50, large);
  log.writer.Append(RecordKind::kTrim, 0, kImage, {});
  follower.Stop();
  const std::vector<std::pair<uint64_t, uint64_t>> expected{
      {50, kRecordDataBytesMax}, {50 + kRecordDataBytesMax, 100}, {0, kImage}};
  CHECK(seen == expected);
}

TEST("ring: a writer waits at half of it, at all of it while a stop is pending, and for the tail") {
  Log log;
  auto reader = Ring::Open(log.path);
  CHECK_OK(reader);
  CHECK_OK(log.writer.Start());
  // Nobody reads: each append adds 1 MiB and a header.
  const Bytes megabyte(kRecordDataBytesMax);
  const uint64_t record = RecordBytes(RecordKind::kWrite, megabyte.size());
  std::atomic<int> appended{0};
  std::thread writer([&] {
    for (int i = 0; i < 5; i++) {
      log.Write(0, megabyte);
      appended++;
    }
  });
  const auto stalled_at = [&](int count) {
    Await("the writer waits", [&] { return appended == count && log.writer.stats().stalled; });
    CHECK_EQ(log.writer.stats().used_bytes, count * record - reader.value().header().tail.load());
  };
  stalled_at(1);  // 2 MiB and two headers are more than half
  reader.value().SetStopPending(true);
  CHECK(log.writer.stop_pending());
  stalled_at(3);
  reader.value().SetStopPending(false);
  reader.value().Free(record);
  stalled_at(3);  // more than half is used still
  reader.value().Free(3 * record);
  stalled_at(4);
  reader.value().Free(4 * record);
  writer.join();
  const LogWriter::Stats stats = log.writer.stats();
  CHECK_EQ(stats.stalls, 3);
  CHECK(!stats.stalled && stats.stalled_us > 0);
  CHECK_EQ(stats.used_bytes_peak, 3 * record);
}

TEST("ring: the end of logging lets everybody go, and what lay there is void") {
  Log log;
  auto reader = Ring::Open(log.path);
  CHECK_OK(reader);
  CHECK_OK(log.writer.Start());
  const Bytes megabyte(kRecordDataBytesMax);
  std::vector<std::thread> writers;
  for (int i = 0; i < 4; i++) {
    writers.emplace_back([&] {
      for (int count = 0; count < 3; count++) log.Write(0, megabyte);
    });
  }
  Await("a writer waits", [&] { return log.writer.stats().stalled; });
  reader.value().SetStopPending(true);
  log.writer.Stop();
  for (std::thread& writer : writers) writer.join();
  const uint64_t head = reader.value().header().head.load();
  CHECK(!log.writer.logging() && !log.writer.stop_pending());
  CHECK_EQ(reader.value().header().stop_pending.load(), 0u);
  const auto again = log.writer.Start();
  CHECK_OK(again);
  CHECK_EQ(again.value(), head);
  CHECK_EQ(reader.value().header().tail.load(), head);
  CHECK_EQ(log.writer.stats().used_bytes, 0);
}

TEST("ring: what is none is refused, and a new one leaves the old one to its readers") {
  Log log;
  auto reader = Ring::Open(log.path);
  CHECK_OK(reader);
  log.Create(log.path);
  CHECK_EQ(reader.value().header().ring_bytes, kRingBytesMin);
  log.writer.ring().Remove(log.path);  // it is another's by now
  const auto damage = [&](uint64_t offset, const char* bytes, const char* why) {
    log.Create(log.path);
    CHECK_OK(Ring::Open(log.path));
    const Descriptor file(::open(log.path.c_str(), O_WRONLY));
    CHECK(::pwrite(file.get(), bytes, 1, static_cast<off_t>(offset)) == 1);
    CHECK_ERROR(Ring::Open(log.path), ErrorCode::kProtocol, why);
  };
  damage(0, "X", "magic");
  damage(offsetof(RingHeader, version), "\x07", "version 7");
  damage(offsetof(RingHeader, ring_bytes), "\x01", "sizes");
  log.Create(log.path);
  CHECK(::truncate(log.path.c_str(), 8192) == 0);
  CHECK_ERROR(Ring::Open(log.path), ErrorCode::kProtocol, "sizes");
}

TEST("ranges: overlapping ones in the order in which they came, others at once") {
  RangeLock ranges;
  std::vector<int> order;
  auto first = std::optional(ranges.Acquire(0, 10, [] {}));
  const auto entries = [&](bool held) {
    int count = 0;
    ranges.Exclusively([&] {
      ranges.ForEach([&](uint64_t, uint64_t, bool is_held) { count += is_held == held ? 1 : 0; });
    });
    return count;
  };
  const auto take = [&](int name, uint64_t offset, uint64_t length) {
    return std::thread([&, name, offset, length] {
      ranges.Acquire(offset, length, [&] { order.push_back(name); });
    });
  };
  std::thread second = take(2, 5, 10);
  Await("the second waits", [&] { return entries(false) == 1; });
  std::thread third = take(3, 12, 8);  // overlaps with the second only, which has not begun
  Await("the third waits", [&] { return entries(false) == 2; });
  ranges.Acquire(20, 5, [&] { order.push_back(4); });
  CHECK_EQ(entries(true), 1);
  first.reset();
  second.join();
  third.join();
  CHECK(order == (std::vector<int>{4, 2, 3}));
}

TEST("ranges: never two in one place, under any mix") {
  RangeLock ranges;
  std::vector<int> owners(200, 0);  // not atomic: this lock alone guards them
  std::vector<std::thread> threads;
  for (int own = 1; own <= 4; own++) {
    threads.emplace_back([&, own] {
      Random random(static_cast<uint64_t>(70 + own));
      for (int step = 0; step < 3000; step++) {
        const uint64_t offset = random() % owners.size();
        const uint64_t length = 1 + random() % std::min<uint64_t>(30, owners.size() - offset);
        const auto hold = ranges.Acquire(offset, length, [] {});
        for (uint64_t at = offset; at < offset + length; at++) {
          CHECK_EQ(owners[at], 0);
          owners[at] = own;
        }
        if (step % 64 == 0) std::this_thread::yield();
        for (uint64_t at = offset; at < offset + length; at++) {
          CHECK_EQ(owners[at], own);
          owners[at] = 0;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST("flush debt: who comes after an early answer waits until it is paid, once for several") {
  RingHeader shared{};
  std::latch begun(1), may_pay(1);
  std::atomic<int> payments{0};
  const auto pay = [&] {
    if (payments++ > 0) return;
    begun.count_down();
    may_pay.wait();
  };
  std::optional<FlushDebt> debt(std::in_place, shared, pay, [] {});
  debt->WaitUntilPaid();  // nothing is owed
  debt->Owe();
  begun.wait();
  debt->Owe();
  debt->Owe();
  std::atomic<bool> passed{false};
  std::thread later([&] {
    debt->WaitUntilPaid();
    passed = true;
  });
  CHECK_EQ(shared.flushes_owed.load(), 3);
  CHECK_EQ(shared.flushes_paid.load(), 0);
  CHECK(!passed);
  may_pay.count_down();
  later.join();
  CHECK_EQ(shared.flushes_paid.load(), 3);
  CHECK_EQ(payments.load(), 2);
  debt->Owe();
  debt.reset();  // not before that one is paid
  CHECK_EQ(shared.flushes_paid.load(), 4);
}

TEST("flush debt: what is written is saved for by the MiB, and nobody waits for that") {
  RingHeader shared{};
  std::binary_semaphore saved(0), may_go_on(0);
  std::atomic<int> payments{0};
  const auto save = [&] {
    saved.release();
    may_go_on.acquire();
  };
  std::optional<FlushDebt> debt(std::in_place, shared, [&] { payments++; }, save);
  const uint64_t mib = uint64_t{1} << 20;
  debt->Wrote(mib - 1);  // not yet
  debt->Wrote(1);  // counts as more
  saved.acquire();
  debt->WaitUntilPaid();  // while it saves
  debt->Wrote(3 * mib);   // this too is for the next time
  may_go_on.release();
  saved.acquire();
  debt->Owe();
  may_go_on.release();
  debt->WaitUntilPaid();
  CHECK_EQ(payments.load(), 1);
  CHECK_EQ(shared.flushes_paid.load(), 1);
  debt.reset();
  CHECK(!saved.try_acquire());
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
