// A few persistent threads that share one piece of work at a time with the
// caller: a parallel for. They sleep on a condition variable in between.
#pragma once

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <vector>

#include "base/thread.h"

namespace holdfast {

class WorkerPool {
 public:
  // Helpers that come in handy, or that are needed: those take no core from
  // whoever runs on it when they are woken, but wait for one that is free.
  enum class Helpers { kHandy, kNeeded };

  // `threads` counts the caller: 1 starts none. `name`: as Thread takes it.
  explicit WorkerPool(unsigned threads, const char* name = "hf-copy",
                      Helpers helpers = Helpers::kHandy) {
    for (unsigned i = 1; i < threads; ++i) {
      helpers_.emplace_back(name, [this, helpers] {
        const sched_param none{};
        if (helpers == Helpers::kHandy) (void)::sched_setscheduler(0, SCHED_BATCH, &none);
        Loop();
      });
    }
  }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;
  ~WorkerPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    helpers_.clear();  // joins
  }

  size_t threads() const { return helpers_.size() + 1; }

  // Calls body(0) … body(count - 1), each once, in any order, on any of the
  // threads; returns when all have returned.
  void ForEach(size_t count, const std::function<void(size_t)>& body) {
    if (count <= 1 || helpers_.empty()) {
      for (size_t i = 0; i < count; ++i) body(i);
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      body_ = &body;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      ++generation_;
    }
    work_.notify_all();
    Take(body, count);
    std::unique_lock lock(mutex_);
    // A helper that was not even scheduled so far is not waited for.
    body_ = nullptr;
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void Take(const std::function<void(size_t)>& body, size_t count) {
    for (;;) {
      const size_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) return;
      body(index);
    }
  }

  void Loop() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      if (body_ == nullptr) continue;  // all done without this thread
      const auto* body = body_;
      const size_t count = count_;
      ++busy_;
      lock.unlock();
      Take(*body, count);
      lock.lock();
      if (--busy_ > 0) continue;
      lock.unlock();
      done_.notify_one();  // without the lock, or the caller blocks on it at once
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_, done_;
  const std::function<void(size_t)>* body_ = nullptr;
  size_t count_ = 0;
  std::atomic<size_t> next_{0};
  size_t busy_ = 0;  // helpers inside a body
  uint64_t generation_ = 0;
  bool stopping_ = false;
  std::vector<Thread> helpers_;  // last: they use all of the above
};

}  // namespace holdfast
