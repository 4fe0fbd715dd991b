// Finds a running Linux guest's run queues in its RAM, by its kernel's symbols.
//
//   banner found at a 2 MiB step ─► where the image lies (KASLR or not)
//   page_offset_base             ─► where all of RAM is mapped
//   __per_cpu_offset, runqueues  ─► each CPU's run queue
//   BTF, in the image            ─► rq.curr, task_struct.{pid, tgid, comm}
//
// x86-64, Linux 5.2 or newer with BTF. Pages are not walked: run queues and
// tasks lie in the direct mapping or in the image.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "trace/guest_memory.h"

namespace holdfast {

// Addresses as /proc/kallsyms of the guest has them; 0 where it has none.
struct GuestSymbols {
  uint64_t text = 0;              // _text
  uint64_t linux_banner = 0;
  uint64_t per_cpu_offset = 0;    // __per_cpu_offset
  uint64_t runqueues = 0;
  uint64_t start_btf = 0;         // __start_BTF
  uint64_t stop_btf = 0;          // __stop_BTF
  uint64_t page_offset_base = 0;  // may be missing: then the mapping's place is fixed
};

// A process as its CPU's run queue names it.
struct GuestTask {
  int32_t tid = 0;
  int32_t pid = 0;                // the thread group's
  std::array<char, 16> comm{};    // ends in NUL
};

class GuestKernel {
 public:
  static Result<GuestKernel> Locate(const GuestMemory& memory, const GuestSymbols& symbols,
                                    uint32_t vcpus, const CancelSignal& cancel);

  // What runs on that CPU; nothing if it changed while we looked, or is offline.
  std::optional<GuestTask> Current(const GuestMemory& memory, uint32_t vcpu) const;

  const std::string& banner() const { return banner_; }

 private:
  struct Offsets {
    uint32_t rq_curr = 0;
    uint32_t task_pid = 0;
    uint32_t task_tgid = 0;
    uint32_t task_comm = 0;
  };

  GuestKernel() = default;

  uint64_t ImagePhysical(uint64_t symbol) const { return image_ + (symbol - text_); }
  std::optional<uint64_t> Physical(uint64_t address) const;
  bool IsAt(const GuestMemory& memory, const GuestSymbols& symbols, uint64_t image);
  Status ReadTypes(const GuestMemory& memory, const GuestSymbols& symbols);

  uint64_t text_ = 0;   // address of the image
  uint64_t image_ = 0;  // where it lies in physical memory
  uint64_t page_offset_ = 0;
  uint64_t memory_end_ = 0;
  Offsets offsets_;
  std::string banner_;
  std::vector<uint64_t> curr_pointers_;  // physical, of each CPU; 0: none
};

}  // namespace holdfast
