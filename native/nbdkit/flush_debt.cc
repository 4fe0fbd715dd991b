#include "nbdkit/flush_debt.h"

namespace holdfast {

FlushDebt::FlushDebt(RingHeader& shared, std::function<void()> pay)
    : shared_(shared), pay_(std::move(pay)) {
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

void FlushDebt::WaitUntilPaid() {
  if (paid()) return;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return paid(); });
}

void FlushDebt::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !paid(); });
    if (paid()) return;
    const uint64_t owed = shared_.flushes_owed.load();
    lock.unlock();
    pay_();
    lock.lock();
    shared_.flushes_paid.store(owed);
    changed_.notify_all();
  }
}

}  // namespace holdfast
