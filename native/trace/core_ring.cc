#include "trace/core_ring.h"

#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/clock.h"

namespace holdfast {
namespace {

constexpr uint64_t kPageBytes = 4096;

Error Refused(const char* syscall, const std::string& what) {
  const bool lacking = errno == EACCES || errno == EPERM || errno == ENOENT || errno == ENOSYS;
  return Error::FromErrno(syscall, what,
                          lacking ? ErrorCode::kUnsupported : ErrorCode::kSyscall);
}

// A field of a record; nothing there reads as 0, which is no thread's id.
template <typename T>
T At(const std::byte* data, size_t size, size_t offset) {
  T value{};
  if (offset + sizeof value <= size) std::memcpy(&value, data + offset, sizeof value);
  return value;
}

}  // namespace

Result<CoreRing> CoreRing::Open(uint32_t core, uint64_t ring_bytes,
                                const Tracepoints& tracepoints) {
  HF_ASSERT(ring_bytes >= kPageBytes && (ring_bytes & (ring_bytes - 1)) == 0);
  CoreRing ring(core, tracepoints);
  HF_TRY(ring.OpenEvent(tracepoints.on_switch.id, ring_bytes));
  // A page for the kernel's account of it, then the data.
  const uint64_t mapped_bytes = kPageBytes + ring_bytes;
  void* base = ::mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd(), 0);
  if (base == MAP_FAILED) return Refused("mmap", "the ring buffer of core " + std::to_string(core));
  ring.ring_ = Mapping(base, mapped_bytes);
  HF_TRY(ring.OpenEvent(tracepoints.on_migrate.id, ring_bytes));
  HF_TRY(ring.OpenEvent(tracepoints.on_wakeup.id, ring_bytes));
  return ring;
}

Status CoreRing::OpenEvent(uint32_t tracepoint, uint64_t ring_bytes) {
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_TRACEPOINT;
  attributes.size = sizeof attributes;
  attributes.config = tracepoint;
  attributes.sample_period = 1;
  attributes.sample_type = PERF_SAMPLE_TIME | PERF_SAMPLE_CPU | PERF_SAMPLE_RAW;
  attributes.read_format = PERF_FORMAT_LOST;
  attributes.sample_id_all = 1;  // records of losses have a time, too
  attributes.disabled = 1;
  attributes.use_clockid = 1;
  attributes.clockid = CLOCK_MONOTONIC;
  attributes.watermark = 1;
  attributes.wakeup_watermark = static_cast<uint32_t>(ring_bytes / 2);
  Descriptor event(static_cast<int>(::syscall(SYS_perf_event_open, &attributes, -1,
                                              static_cast<int>(core_), -1, PERF_FLAG_FD_CLOEXEC)));
  if (!event.valid()) {
    return Refused("perf_event_open", "scheduler events of core " + std::to_string(core_));
  }
  if (!events_.empty() && ::ioctl(event.get(), PERF_EVENT_IOC_SET_OUTPUT, fd()) != 0) {
    return Refused("ioctl", "one ring for the events of core " + std::to_string(core_));
  }
  events_.push_back(std::move(event));
  return {};
}

Status CoreRing::Follow(const std::vector<pid_t>& threads) {
  const std::string filters[] = {ThreadFilter({"prev_pid", "next_pid"}, threads),
                                 ThreadFilter({"pid"}, threads), ThreadFilter({"pid"}, threads)};
  for (size_t index = 0; index < events_.size(); ++index) {
    if (::ioctl(events_[index].get(), PERF_EVENT_IOC_SET_FILTER, filters[index].c_str()) != 0) {
      return Refused("ioctl", "the filter of scheduler events of core " + std::to_string(core_));
    }
  }
  return {};
}

Status CoreRing::Enable() {
  for (const Descriptor& event : events_) {
    if (::ioctl(event.get(), PERF_EVENT_IOC_ENABLE, 0) != 0) {
      return Refused("ioctl", "recording on core " + std::to_string(core_));
    }
  }
  return {};
}

// The memory order of linux/perf_event.h: what lies before `data_head` is
// written before it, and has been read before `data_tail` says so.
void CoreRing::Read(const std::function<void(const SchedEvent&)>& sink) {
  auto* account = reinterpret_cast<perf_event_mmap_page*>(ring_.data());
  const std::byte* data = ring_.data() + kPageBytes;
  const uint64_t size = ring_.size() - kPageBytes;
  const uint64_t head = __atomic_load_n(&account->data_head, __ATOMIC_ACQUIRE);
  uint64_t tail = account->data_tail;
  while (tail < head) {
    // Records are multiples of eight bytes, so a header never wraps.
    perf_event_header header;
    std::memcpy(&header, data + tail % size, sizeof header);
    HF_ASSERT(header.size >= sizeof header && header.size <= head - tail);
    record_.resize(header.size);
    const uint64_t to_end = std::min<uint64_t>(header.size, size - tail % size);
    std::memcpy(record_.data(), data + tail % size, to_end);
    std::memcpy(record_.data() + to_end, data, header.size - to_end);
    Deliver(record_, sink);
    tail += header.size;
  }
  __atomic_store_n(&account->data_tail, tail, __ATOMIC_RELEASE);
}

void CoreRing::ReadLast(const std::function<void(const SchedEvent&)>& sink) {
  Read(sink);
  uint64_t lost = 0;
  for (const Descriptor& event : events_) {
    uint64_t count_and_lost[2] = {};
    if (::read(event.get(), count_and_lost, sizeof count_and_lost) == sizeof count_and_lost) {
      lost += count_and_lost[1];
    }
  }
  if (lost <= lost_told_) return;
  sink({.time_ns = MonotonicNs(),
        .kind = SchedKind::kLost,
        .core = static_cast<uint16_t>(core_),
        .third = static_cast<uint32_t>(std::min<uint64_t>(lost - lost_told_, UINT32_MAX))});
  lost_told_ = lost;
}

void CoreRing::Deliver(const std::vector<std::byte>& record,
                       const std::function<void(const SchedEvent&)>& sink) {
  const std::byte* bytes = record.data();
  const size_t size = record.size();
  perf_event_header header;
  std::memcpy(&header, bytes, sizeof header);
  SchedEvent event;
  event.core = static_cast<uint16_t>(core_);
  if (header.type == PERF_RECORD_LOST) {
    // header, id, lost, then sample_id: time, cpu
    const auto lost = At<uint64_t>(bytes, size, 16);
    event.time_ns = At<uint64_t>(bytes, size, 24);
    event.kind = SchedKind::kLost;
    event.third = static_cast<uint32_t>(std::min<uint64_t>(lost, UINT32_MAX));
    lost_told_ += lost;
    sink(event);
    return;
  }
  if (header.type != PERF_RECORD_SAMPLE) return;
  // header, time, cpu and padding, size of the raw data, raw data
  constexpr size_t kRawAt = 28;
  if (size < kRawAt) return;
  event.time_ns = At<uint64_t>(bytes, size, 8);
  const std::byte* raw = bytes + kRawAt;
  const size_t raw_size = std::min<size_t>(At<uint32_t>(bytes, size, 24), size - kRawAt);
  const auto id = At<uint16_t>(raw, raw_size, 0);
  if (id == tracepoints_.on_switch.id) {
    const SwitchFields& fields = tracepoints_.on_switch;
    event.kind = SchedKind::kSwitch;
    event.first = At<int32_t>(raw, raw_size, fields.prev_pid);
    event.second = At<int32_t>(raw, raw_size, fields.next_pid);
    event.third = At<uint32_t>(raw, raw_size, fields.prev_state);
  } else if (id == tracepoints_.on_migrate.id) {
    const MigrateFields& fields = tracepoints_.on_migrate;
    event.kind = SchedKind::kMigrate;
    event.first = At<int32_t>(raw, raw_size, fields.pid);
    event.second = At<int32_t>(raw, raw_size, fields.orig_cpu);
    event.third = At<uint32_t>(raw, raw_size, fields.dest_cpu);
  } else if (id == tracepoints_.on_wakeup.id) {
    const WakeupFields& fields = tracepoints_.on_wakeup;
    event.kind = SchedKind::kWakeup;
    event.first = At<int32_t>(raw, raw_size, fields.pid);
    event.third = At<uint32_t>(raw, raw_size, fields.target_cpu);
  } else {
    return;
  }
  sink(event);
}

}  // namespace holdfast
