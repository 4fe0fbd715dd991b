// Which strategies this kernel lets this process use, each tried for real on a
// socket that leads nowhere. sendfile, splice and vmsplice need no probe.
#pragma once

#include <cstdint>
#include <string>

namespace holdfast {

struct SenderProbe {
  bool zerocopy = false;
  std::string zerocopy_reason;  // why not; empty if it can be used
  bool uring = false;
  std::string uring_reason;
  bool uring_usage_reports = false;   // the ring says what was copied (Linux 6.2)
  bool uring_fixed_buffers = false;   // pages can be registered with the ring
  int64_t optmem_bytes_max = -1;      // net.core.optmem_max; -1: unknown
  int64_t memlock_bytes_max = -1;     // -1: unlimited
};

SenderProbe ProbeSenders();

}  // namespace holdfast
