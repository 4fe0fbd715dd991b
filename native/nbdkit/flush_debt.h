// Flushes that were answered before they were done (docs/disk.md, "Flushes").
// A thread pays them, several with one. Until then nobody may change the image:
// so what a flush promised is on stable storage before anything that came after
// it, as if it had been answered late.
//
// While debts are to be expected the same thread saves for them: what is written
// is on its way to the disk before the next one is made, so that paying it, and
// with it all that waits for that, takes the time of the last few writes only.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

#include "base/thread.h"
#include "disk/ring_layout.h"

namespace holdfast {

class FlushDebt {
 public:
  // Counts in `shared`. `pay` flushes the image, and knows what to do if it fails;
  // `save` starts to write to the disk what the image has in memory.
  FlushDebt(RingHeader& shared, std::function<void()> pay, std::function<void()> save);
  FlushDebt(const FlushDebt&) = delete;
  FlushDebt& operator=(const FlushDebt&) = delete;
  ~FlushDebt();  // pays first

  void Owe();
  // One write to the image.
  void Wrote(uint64_t bytes);
  void WaitUntilPaid();

 private:
  bool paid() const { return shared_.flushes_paid.load() == shared_.flushes_owed.load(); }
  void Loop();

  RingHeader& shared_;
  const std::function<void()> pay_;
  const std::function<void()> save_;
  std::atomic<uint64_t> unsaved_bytes_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
