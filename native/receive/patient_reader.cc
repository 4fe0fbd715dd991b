#include "receive/patient_reader.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

namespace holdfast {
namespace {

// For a read that is under way when nobody wants it any more: one that takes longer hangs.
constexpr auto kEndsWithin = std::chrono::milliseconds(200);

}  // namespace

struct PatientReader::Work {
  std::vector<Extent> extents;
  std::vector<std::byte> content;
  std::vector<size_t> got;  // of the extents that are done
  bool abandoned = false;
};

struct PatientReader::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::shared_ptr<Work> next;
  bool busy = false;  // from the call until the thread has let go of it
  bool stopping = false;
};

PatientReader::PatientReader(ReadSome read_some)
    : read_some_(read_some), shared_(std::make_shared<Shared>()) {}

PatientReader::~PatientReader() {
  if (!thread_.joinable()) return;
  Stop();
  std::unique_lock lock(shared_->mutex);
  const bool idle = shared_->changed.wait_until(lock, *ends_by_, [this] { return !shared_->busy; });
  lock.unlock();
  if (!idle) thread_.Leave();
}

void PatientReader::Stop() {
  if (!thread_.joinable() || ends_by_) return;
  const std::lock_guard lock(shared_->mutex);
  shared_->stopping = true;
  work_->abandoned = true;
  shared_->changed.notify_all();
  ends_by_ = std::chrono::steady_clock::now() + kEndsWithin;
}

PatientReader::Got PatientReader::Read(std::vector<Extent> extents, double wait_ms) {
  size_t bytes = 0;
  for (const Extent& extent : extents) bytes += extent.bytes;
  std::vector<size_t> none(extents.size());
  if (!thread_.joinable()) {
    thread_ = Thread("hf-disk-read", [shared = shared_, read_some = read_some_] {
      Loop(*shared, read_some);
    });
  }
  std::unique_lock lock(shared_->mutex);
  if (shared_->busy) return {std::move(none), nullptr};
  if (work_ == nullptr || work_->abandoned) work_ = std::make_shared<Work>();
  work_->extents = std::move(extents);
  work_->content.resize(bytes);
  work_->got.clear();
  shared_->next = work_;
  shared_->busy = true;
  shared_->changed.notify_all();
  const std::chrono::duration<double, std::milli> wait(wait_ms);
  if (!shared_->changed.wait_for(lock, wait, [this] { return !shared_->busy; })) {
    work_->abandoned = true;
  }
  std::ranges::copy(work_->got, none.begin());
  return {std::move(none), work_->content.data()};
}

void PatientReader::Loop(Shared& shared, ReadSome read_some) {
  std::unique_lock lock(shared.mutex);
  for (;;) {
    shared.changed.wait(lock, [&shared] { return shared.stopping || shared.next != nullptr; });
    if (shared.next == nullptr) return;
    const std::shared_ptr<Work> work = std::move(shared.next);
    std::byte* target = work->content.data();
    for (const Extent& extent : work->extents) {
      if (work->abandoned) break;
      lock.unlock();
      size_t done = 0;
      while (done < extent.bytes) {
        const ssize_t got = read_some(extent.file->get(), target + done, extent.bytes - done,
                                      static_cast<off_t>(extent.offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        done += static_cast<size_t>(got);
      }
      target += extent.bytes;
      lock.lock();
      if (!work->abandoned) work->got.push_back(done);
    }
    work->extents.clear();  // their files may be closed
    shared.busy = false;
    shared.changed.notify_all();
  }
}

}  // namespace holdfast
