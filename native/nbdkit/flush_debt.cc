#include "nbdkit/flush_debt.h"

#include <algorithm>

namespace holdfast {
namespace {

// Saved for at a time. Less would send neighbours to the disk one by one, more
// would leave more to be paid.
constexpr uint64_t kSaveBytes = uint64_t{1} << 20;
// A small write counts as so much: scattered, each takes the disk's time.
constexpr uint64_t kWriteBytesMin = kSaveBytes / 16;

}  // namespace

FlushDebt::FlushDebt(RingHeader& shared, std::function<void()> pay, std::function<void()> save)
    : shared_(shared), pay_(std::move(pay)), save_(std::move(save)) {
  thread_ = Thread("hf-flush", [this] { Loop(); });
}

FlushDebt::~FlushDebt() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.Join();
}

void FlushDebt::Owe() {
  const std::lock_guard lock(mutex_);
  shared_.flushes_owed.fetch_add(1);
  changed_.notify_all();
}

void FlushDebt::Wrote(uint64_t bytes) {
  bytes = std::max(bytes, kWriteBytesMin);
  const uint64_t before = unsaved_bytes_.fetch_add(bytes);
  if (before >= kSaveBytes || before + bytes < kSaveBytes) return;
  const std::lock_guard lock(mutex_);  // the thread is before its look, or asleep
  changed_.notify_all();
}

void FlushDebt::WaitUntilPaid() {
  if (paid()) return;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return paid(); });
}

void FlushDebt::Loop() {
  std::unique_lock lock(mutex_);
  const auto to_save = [this] { return unsaved_bytes_.load() >= kSaveBytes; };
  for (;;) {
    changed_.wait(lock, [&] { return ending_ || !paid() || to_save(); });
    if (paid() && ending_) return;
    const uint64_t owed = shared_.flushes_owed.load();
    const bool pays = !paid();
    unsaved_bytes_.store(0);
    lock.unlock();
    if (pays) {
      pay_();
    } else {
      save_();
    }
    lock.lock();
    if (!pays) continue;
    shared_.flushes_paid.store(owed);
    changed_.notify_all();
  }
}

}  // namespace holdfast
