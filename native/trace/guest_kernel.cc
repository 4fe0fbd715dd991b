#include "trace/guest_kernel.h"

#include <cstring>
#include <utility>

#include "trace/btf.h"

namespace holdfast {
namespace {

// CONFIG_PHYSICAL_ALIGN of every distribution: KASLR moves the image by it.
constexpr uint64_t kImageStep = 2 << 20;
// The image's part of the address space, KERNEL_IMAGE_SIZE at most.
constexpr uint64_t kImageBytesMax = 1 << 30;
constexpr uint64_t kBtfBytesMax = 64 << 20;
// PAGE_OFFSET where page_offset_base does not say otherwise (4-level paging).
constexpr uint64_t kPageOffset = 0xffff888000000000;
constexpr uint64_t kKernelHalf = 0xff00000000000000;
constexpr uint64_t kGigabyte = 1 << 30;
constexpr char kBanner[] = "Linux version ";
constexpr size_t kBannerBytes = 256;
// A process that is switched away while we look is looked for again.
constexpr int kAttempts = 4;

}  // namespace

Result<GuestKernel> GuestKernel::Locate(const GuestMemory& memory, const GuestSymbols& symbols,
                                        uint32_t vcpus, const CancelSignal& cancel) {
  GuestKernel kernel;
  kernel.text_ = symbols.text;
  kernel.memory_end_ = memory.end();
  uint64_t image = 0;
  while (image < kernel.memory_end_ && !kernel.IsAt(memory, symbols, image)) {
    if (cancel.cancelled()) return Error::Of(ErrorCode::kCancelled, "cancelled");
    image += kImageStep;
  }
  if (image >= kernel.memory_end_) {
    return Error::Of(ErrorCode::kUnsupported,
                     "the guest's RAM holds no kernel that these symbols fit");
  }
  HF_TRY(kernel.ReadTypes(memory, symbols));
  for (uint32_t vcpu = 0; vcpu < vcpus; ++vcpu) {
    uint64_t area = 0;
    memory.Read(kernel.ImagePhysical(symbols.per_cpu_offset) + 8 * vcpu, area);
    const auto queue = kernel.Physical(area + symbols.runqueues);
    kernel.curr_pointers_.push_back(queue ? *queue + kernel.offsets_.rq_curr : 0);
  }
  for (uint32_t vcpu = 0; vcpu < vcpus; ++vcpu) {
    if (kernel.Current(memory, vcpu)) return kernel;
  }
  return Error::Of(ErrorCode::kUnsupported,
                   "the run queues of the guest's kernel are not where its symbols say");
}

bool GuestKernel::IsAt(const GuestMemory& memory, const GuestSymbols& symbols, uint64_t image) {
  image_ = image;
  char banner[sizeof kBanner - 1];
  if (!memory.Read(ImagePhysical(symbols.linux_banner), banner)) return false;
  if (std::memcmp(banner, kBanner, sizeof banner) != 0) return false;
  uint16_t btf_magic = 0;
  if (!memory.Read(ImagePhysical(symbols.start_btf), btf_magic)) return false;
  if (btf_magic != Btf::kMagic) return false;
  page_offset_ = kPageOffset;
  if (symbols.page_offset_base != 0 &&
      !memory.Read(ImagePhysical(symbols.page_offset_base), page_offset_)) {
    return false;
  }
  banner_ = memory.Text(ImagePhysical(symbols.linux_banner), kBannerBytes);
  return page_offset_ >= kKernelHalf && page_offset_ % kGigabyte == 0;
}

Status GuestKernel::ReadTypes(const GuestMemory& memory, const GuestSymbols& symbols) {
  const uint64_t size = symbols.stop_btf - symbols.start_btf;
  if (size > kBtfBytesMax) return Error::Of(ErrorCode::kLimit, "the guest kernel's BTF is too large");
  std::vector<std::byte> bytes(size);
  if (!memory.Read(ImagePhysical(symbols.start_btf), bytes.data(), size)) {
    return Error::Of(ErrorCode::kUnsupported, "the guest kernel's BTF is not in its RAM");
  }
  const auto btf = Btf::Parse(std::move(bytes));
  if (!btf.ok()) return btf.error();
  const std::pair<uint32_t*, std::pair<const char*, const char*>> wanted[] = {
      {&offsets_.rq_curr, {"rq", "curr"}},
      {&offsets_.task_pid, {"task_struct", "pid"}},
      {&offsets_.task_tgid, {"task_struct", "tgid"}},
      {&offsets_.task_comm, {"task_struct", "comm"}},
  };
  for (const auto& [offset, name] : wanted) {
    const auto found = btf.value().MemberOffset(name.first, name.second);
    if (!found) {
      return Error::Of(ErrorCode::kUnsupported, std::string("the guest kernel's BTF has no ") +
                                                    name.first + "." + name.second);
    }
    *offset = *found;
  }
  return {};
}

std::optional<uint64_t> GuestKernel::Physical(uint64_t address) const {
  if (address >= text_ && address - text_ < kImageBytesMax) return ImagePhysical(address);
  if (address >= page_offset_ && address - page_offset_ < memory_end_) return address - page_offset_;
  return std::nullopt;
}

std::optional<GuestTask> GuestKernel::Current(const GuestMemory& memory, uint32_t vcpu) const {
  const uint64_t pointer_at = curr_pointers_[vcpu];
  if (pointer_at == 0) return std::nullopt;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    uint64_t before = 0, after = 0;
    if (!memory.Read(pointer_at, before)) return std::nullopt;
    const auto task_at = Physical(before);
    if (!task_at) return std::nullopt;
    GuestTask task;
    if (!memory.Read(*task_at + offsets_.task_pid, task.tid) ||
        !memory.Read(*task_at + offsets_.task_tgid, task.pid) ||
        !memory.Read(*task_at + offsets_.task_comm, task.comm) || !memory.Read(pointer_at, after)) {
      return std::nullopt;
    }
    task.comm.back() = '\0';
    // PID_MAX_LIMIT: what is larger is no process.
    if (before == after) return task.tid >= 0 && task.tid <= 1 << 22 ? std::optional(task) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace holdfast
