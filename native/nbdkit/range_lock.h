// Ranges of the disk that are being changed. Overlapping changes go one after
// the other, in the order in which they came, so that the image and the log have
// them in the same order; others don't see each other.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <list>
#include <mutex>
#include <optional>
#include <utility>

namespace holdfast {

class RangeLock {
  struct Entry {
    uint64_t offset;
    uint64_t end;
    bool held;
  };
  using Entries = std::list<Entry>;

 public:
  // Holds its range until it is destroyed.
  class Hold {
   public:
    Hold(Hold&& other) noexcept : lock_(std::exchange(other.lock_, nullptr)), entry_(other.entry_) {}
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    Hold& operator=(Hold&&) = delete;
    ~Hold() {
      if (lock_ != nullptr) lock_->Release(entry_);
    }

   private:
    friend class RangeLock;
    Hold(RangeLock* lock, Entries::iterator entry) : lock_(lock), entry_(entry) {}

    RangeLock* lock_;
    Entries::iterator entry_;
  };

  RangeLock() = default;
  RangeLock(const RangeLock&) = delete;
  RangeLock& operator=(const RangeLock&) = delete;

  // Waits for every overlapping range that came before. `begin` runs the moment
  // the range is held, alone with all other `begin`s and Exclusively()s. Nothing
  // once Close() was called.
  template <typename Begin>
  std::optional<Hold> Acquire(uint64_t offset, uint64_t length, const Begin& begin) {
    std::unique_lock lock(mutex_);
    if (closed_) return std::nullopt;
    const auto entry = entries_.insert(entries_.end(), Entry{offset, offset + length, false});
    if (!IsFirst(entry)) {
      waiting_++;
      changed_.wait(lock, [&] { return IsFirst(entry); });
      waiting_--;
    }
    entry->held = true;
    begin();
    return Hold(this, entry);
  }

  // No more from here on. Returns when the last one is released.
  void Close() {
    std::unique_lock lock(mutex_);
    closed_ = true;
    waiting_++;
    changed_.wait(lock, [this] { return entries_.empty(); });
    waiting_--;
  }

  // While nothing is acquired or released.
  template <typename Action>
  void Exclusively(const Action& action) {
    const std::lock_guard lock(mutex_);
    action();
  }

  // In Exclusively(): each range that is held, or waited for.
  template <typename Visit>
  void ForEach(const Visit& visit) const {
    for (const Entry& entry : entries_) visit(entry.offset, entry.end - entry.offset, entry.held);
  }

 private:
  bool IsFirst(Entries::iterator own) const {
    for (auto other = entries_.begin(); other != own; ++other) {
      if (other->offset < own->end && own->offset < other->end) return false;
    }
    return true;
  }

  void Release(Entries::iterator entry) {
    const std::lock_guard lock(mutex_);
    entries_.erase(entry);
    if (waiting_ > 0) changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Entries entries_;  // in the order of arrival; as many as nbdkit has threads at most
  int waiting_ = 0;
  bool closed_ = false;
};

}  // namespace holdfast
