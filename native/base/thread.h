// A counted, named thread that must be joined, or left.
//
// All signals are blocked in it: node's handlers belong to node's threads, and
// the data plane's system calls need not fear EINTR from them.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <thread>
#include <utility>

namespace holdfast {

// Threads started and not yet joined; tests check that none is left behind.
inline std::atomic<int> g_threads_open{0};

class Thread {
 public:
  Thread() = default;
  // `name` shows in /proc and in debuggers: at most 15 characters.
  template <typename Body>
  Thread(const char* name, Body body) {
    g_threads_open.fetch_add(1, std::memory_order_relaxed);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([name, body = std::move(body)]() mutable {
      pthread_setname_np(pthread_self(), name);
      body();
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  Thread(Thread&&) = default;
  Thread& operator=(Thread&& other) {
    Join();
    thread_ = std::move(other.thread_);
    return *this;
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() { Join(); }

  bool joinable() const { return thread_.joinable(); }
  void Join() {
    if (!thread_.joinable()) return;
    thread_.join();
    g_threads_open.fetch_sub(1, std::memory_order_relaxed);
  }
  // Of one that hangs in the kernel, and owns all that it uses: nobody can wait for it.
  void Leave() {
    thread_.detach();
    g_threads_open.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  std::thread thread_;
};

}  // namespace holdfast
