#include "trace/guest_sampler.h"

#include <poll.h>
#include <time.h>

#include <utility>

#include "base/clock.h"

namespace holdfast {
namespace {

// Names beyond are kept as one: a guest may rename its threads without end.
constexpr size_t kNamesMax = 1 << 16;
constexpr uint64_t kSecondNs = 1'000'000'000;

}  // namespace

GuestSampler::GuestSampler(GuestMemory memory, GuestKernel kernel, const Options& options)
    : memory_(std::move(memory)), kernel_(std::move(kernel)), options_(options), last_(options.vcpus) {
  HF_ASSERT(options.vcpus > 0 && options.interval_ns > 0 && options.events_max > 0);
  thread_ = Thread("hf-guest-trace", [this] { Run(); });
}

GuestSampler::~GuestSampler() { Stop(); }

void GuestSampler::Run() {
  pollfd cancelled{.fd = cancel_.fd(), .events = POLLIN, .revents = 0};
  uint64_t due_ns = MonotonicNs();
  while (!cancel_.cancelled()) {
    const uint64_t now_ns = MonotonicNs();
    if (now_ns >= due_ns) {
      Look(now_ns);
      due_ns += options_.interval_ns;
      if (now_ns > due_ns) {
        const std::lock_guard lock(mutex_);
        stats_.late += 1;
        due_ns = now_ns + options_.interval_ns;
      }
      continue;
    }
    const uint64_t wait_ns = due_ns - now_ns;
    const timespec wait{.tv_sec = static_cast<time_t>(wait_ns / kSecondNs),
                        .tv_nsec = static_cast<long>(wait_ns % kSecondNs)};
    ::ppoll(&cancelled, 1, &wait, nullptr);
  }
}

void GuestSampler::Look(uint64_t now_ns) {
  const std::lock_guard lock(mutex_);
  stats_.looks += 1;
  for (uint32_t vcpu = 0; vcpu < options_.vcpus; ++vcpu) {
    const auto task = kernel_.Current(memory_, vcpu);
    if (!task) {
      stats_.unread += 1;
      continue;
    }
    GuestEvent event{.time_ns = now_ns,
                     .vcpu = static_cast<uint16_t>(vcpu),
                     .tid = task->tid,
                     .pid = task->pid,
                     .name = NameOf(*task)};
    GuestEvent& last = last_[vcpu];
    if (last.time_ns != 0 && last.tid == event.tid && last.name == event.name) continue;
    last = event;
    if (events_.size() < options_.events_max) {
      events_.push_back(event);
    } else {
      stats_.discarded += 1;
    }
  }
}

uint32_t GuestSampler::NameOf(const GuestTask& task) {
  std::string name = names_.size() < kNamesMax ? std::string(task.comm.data()) : std::string("…");
  const auto found = name_numbers_.find(std::string(task.comm.data()));
  if (found != name_numbers_.end()) return found->second;
  if (names_.size() > kNamesMax) return static_cast<uint32_t>(kNamesMax);
  const auto number = static_cast<uint32_t>(names_.size());
  name_numbers_.emplace(name, number);
  names_.push_back(std::move(name));
  return number;
}

GuestSampler::Taken GuestSampler::Take() {
  const std::lock_guard lock(mutex_);
  return {std::exchange(events_, {}), names_};
}

GuestSamplerStats GuestSampler::Stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void GuestSampler::Stop() {
  cancel_.Cancel();
  thread_.Join();
}

}  // namespace holdfast
