// What this kernel lets this process do, each tried for real.
#pragma once

#include <cstdint>
#include <string>


namespace holdfast {

struct KernelProbe {
  std::string release;
  int userfaultfd_errno = 0;  // 0: it can be opened
  bool wp_async = false;
  bool pagemap_scan = false;
  bool ptrace = false;
  bool pidfd_getfd = false;
  int64_t memlock_bytes = -1;  // -1: unlimited
  std::string cap_eff;
};

KernelProbe ProbeKernel();

}  // namespace holdfast
