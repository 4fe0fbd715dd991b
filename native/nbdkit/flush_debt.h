// Flushes that were answered before they were done (docs/disk.md, "Flushes").
// A thread pays them, several with one. Until then nobody may change the image:
// so what a flush promised is on stable storage before anything that came after
// it, as if it had been answered late.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>

#include "base/thread.h"
#include "disk/ring_layout.h"

namespace holdfast {

class FlushDebt {
 public:
  // Counts in `shared`. `pay` flushes the image, and knows what to do if it fails.
  FlushDebt(RingHeader& shared, std::function<void()> pay);
  FlushDebt(const FlushDebt&) = delete;
  FlushDebt& operator=(const FlushDebt&) = delete;
  ~FlushDebt();  // pays first

  void Owe();
  void WaitUntilPaid();

 private:
  bool paid() const { return shared_.flushes_paid.load() == shared_.flushes_owed.load(); }
  void Loop();

  RingHeader& shared_;
  const std::function<void()> pay_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
