// One thread and a bounded queue: jobs run one after the other, in order.
//
// Every job that was accepted is called exactly once: with `true` to do its
// work, or with `false` if the thread was told to stop first, so that whoever
// waits for it can be told.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

#include "base/thread.h"

namespace holdfast {

class JobThread {
 public:
  using Job = std::function<void(bool run)>;

  JobThread(const char* name, size_t jobs_max) : jobs_max_(jobs_max) {
    thread_ = Thread(name, [this] { Loop(); });
  }
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;
  ~JobThread() {
    Stop({});
    Join();
  }

  enum class Push { kAccepted, kFull, kStopping };

  Push TryPush(Job job) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return Push::kStopping;
      if (jobs_.size() >= jobs_max_) return Push::kFull;
      jobs_.push_back(std::move(job));
    }
    changed_.notify_one();  // without the lock, or the woken thread blocks on it at once
    return Push::kAccepted;
  }

  // Accepts nothing more. What is queued is called with `false`, then `last`
  // runs, then the thread ends. Only the first call counts. Does not wait.
  void Stop(std::function<void()> last) {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    last_ = std::move(last);
    changed_.notify_one();
  }

  void Join() { thread_.Join(); }

 private:
  void Loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) break;
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      const bool run = !stopping_;
      lock.unlock();
      job(run);
      job = nullptr;  // what it holds is released without the lock
      lock.lock();
    }
    lock.unlock();
    if (last_) last_();
  }

  const size_t jobs_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::function<void()> last_;
  bool stopping_ = false;
  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
