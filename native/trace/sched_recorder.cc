#include "trace/sched_recorder.h"

#include <algorithm>
#include <array>
#include <utility>

namespace holdfast {
namespace {

constexpr uint32_t kCancelled = UINT32_MAX;

}  // namespace

Result<std::unique_ptr<SchedRecorder>> SchedRecorder::Start(const Options& options) {
  HF_ASSERT(!options.threads.empty() && options.events_max > 0);
  std::vector<CoreRing> rings;
  for (const uint32_t core : options.cores) {
    auto ring = CoreRing::Open(core, options.ring_bytes, options.tracepoints);
    if (!ring.ok()) return ring.error();
    HF_TRY(ring.value().Follow(options.threads));
    rings.push_back(std::move(ring).value());
  }
  auto recorder = std::unique_ptr<SchedRecorder>(new SchedRecorder(std::move(rings), options));
  HF_TRY(recorder->Begin());
  return recorder;
}

SchedRecorder::~SchedRecorder() { Stop(); }

Status SchedRecorder::Begin() {
  Watch cancel(kCancelled);
  if (!poller_.valid() || !cancel.Add(poller_, cancel_.fd(), EPOLLIN)) {
    return Error::FromErrno("epoll_ctl", "waiting for scheduler events");
  }
  for (size_t index = 0; index < rings_.size(); ++index) {
    Watch ring(static_cast<uint32_t>(index));
    // By edge: the thread empties the ring each time.
    if (!ring.Add(poller_, rings_[index].fd(), EPOLLIN | EPOLLET)) {
      return Error::FromErrno("epoll_ctl", "waiting for scheduler events");
    }
  }
  for (CoreRing& ring : rings_) HF_TRY(ring.Enable());
  thread_ = Thread("hf-sched-trace", [this] { Run(); });
  return {};
}

void SchedRecorder::Run() {
  std::array<epoll_event, 16> events;
  while (!cancel_.cancelled()) {
    if (poller_.Wait(events, -1).empty()) continue;
    const std::lock_guard lock(mutex_);
    stats_.wakeups += 1;
    ReadRings();
  }
}

void SchedRecorder::ReadRings() {
  for (CoreRing& ring : rings_) {
    ring.Read([this](const SchedEvent& event) { Store(event); });
  }
}

void SchedRecorder::Store(const SchedEvent& event) {
  if (event.kind == SchedKind::kLost) {
    stats_.lost += event.third;
  } else {
    stats_.events += 1;
  }
  if (store_.size() < events_max_) {
    store_.push_back(event);
    return;
  }
  stats_.full = true;
  stats_.discarded += 1;
  if (!keep_latest_) return;
  store_.pop_front();
  store_.push_back(event);
}

std::vector<SchedEvent> SchedRecorder::Take() {
  std::vector<SchedEvent> taken;
  {
    const std::lock_guard lock(mutex_);
    ReadRings();
    taken.assign(store_.begin(), store_.end());
    store_.clear();
  }
  // Of one core they are in order; cores are read one after the other.
  std::stable_sort(taken.begin(), taken.end(),
                   [](const auto& a, const auto& b) { return a.time_ns < b.time_ns; });
  return taken;
}

SchedRecorderStats SchedRecorder::Stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void SchedRecorder::Stop() {
  cancel_.Cancel();
  thread_.Join();
  const std::lock_guard lock(mutex_);
  for (CoreRing& ring : rings_) {
    ring.ReadLast([this](const SchedEvent& event) { Store(event); });
  }
  rings_.clear();
}

}  // namespace holdfast
