#include "send/probe.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <fstream>

#include "base/cancel.h"
#include "send/stream_socket.h"
#include "send/uring.h"

namespace holdfast {
namespace {

constexpr char kOptmemFile[] = "/proc/sys/net/core/optmem_max";

}  // namespace

SenderProbe ProbeSenders() {
  SenderProbe probe;
  const CancelSignal cancel;
  StreamSocket socket(Descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), cancel);
  const Status zerocopy = socket.EnableZeroCopy();
  probe.zerocopy = zerocopy.ok();
  if (!zerocopy.ok()) probe.zerocopy_reason = "SO_ZEROCOPY: not in this kernel";

  const auto ring = Uring::Open();
  probe.uring = ring.ok();
  if (ring.ok()) {
    const Uring::Abilities& abilities = ring.value()->abilities();
    probe.uring_usage_reports = abilities.usage_reports;
    probe.uring_fixed_buffers = abilities.fixed_buffers;
  } else {
    probe.uring_reason = ring.error().message;
  }

  if (std::ifstream file(kOptmemFile); !(file >> probe.optmem_bytes_max)) {
    probe.optmem_bytes_max = -1;
  }
  rlimit memlock{};
  if (::getrlimit(RLIMIT_MEMLOCK, &memlock) == 0 && memlock.rlim_cur != RLIM_INFINITY) {
    probe.memlock_bytes_max = static_cast<int64_t>(memlock.rlim_cur);
  }
  return probe;
}

}  // namespace holdfast
