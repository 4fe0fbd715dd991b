#include "receive/staging.h"

#include <sys/mman.h>

#include <algorithm>
#include <cinttypes>

#include "wire/text.h"

namespace holdfast {
namespace {

// Memory becomes usable in such steps; a multiple of the huge page size.
constexpr uint64_t kStepBytes = uint64_t{16} << 20;

constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

Result<EpochStaging> EpochStaging::Reserve(uint64_t bytes_max) {
  const uint64_t bytes = RoundUp(std::max<uint64_t>(bytes_max, 1), kStepBytes);
  void* arena = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
  if (arena == MAP_FAILED) {
    return Error::FromErrno("mmap", Text("staging: address space of %" PRIu64 " bytes", bytes),
                            ErrorCode::kNoSpace);
  }
  return EpochStaging(Mapping(arena, bytes));
}

Result<std::span<std::byte>> EpochStaging::Place(uint64_t bytes) {
  // The decoder bounds an epoch's page bytes before any of them is placed.
  HF_ASSERT(bytes <= arena_.size() - used_);
  const uint64_t end = used_ + bytes;
  if (end > usable_) {
    const uint64_t grown = RoundUp(end, kStepBytes);
    if (::mprotect(arena_.data() + usable_, grown - usable_, PROT_READ | PROT_WRITE) != 0) {
      return Error::FromErrno("mprotect", Text("staging: growing to %" PRIu64 " bytes", grown),
                              ErrorCode::kNoSpace);
    }
    // A hint: fewer faults and TLB misses where the system allows huge pages.
    ::madvise(arena_.data() + usable_, grown - usable_, MADV_HUGEPAGE);
    usable_ = grown;
  }
  const std::span<std::byte> place(arena_.data() + used_, bytes);
  used_ = end;
  resident_ = std::max(resident_, used_);
  return place;
}

void EpochStaging::AddSegment(uint32_t slice, std::span<const std::byte> table,
                              std::span<const std::byte> pages) {
  const size_t pages_offset =
      pages.empty() ? 0 : static_cast<size_t>(pages.data() - arena_.data());
  segments_.push_back({pages.empty(), slice, tables_.size(), table.size(), pages_offset});
  tables_.insert(tables_.end(), table.begin(), table.end());
}

void EpochStaging::OrderBySlice() {
  std::ranges::stable_sort(segments_, {}, &Segment::slice);
}

void EpochStaging::Clear() {
  used_ = 0;
  segments_.clear();
  tables_.clear();
}

void EpochStaging::Trim(uint64_t keep_bytes) {
  HF_ASSERT(used_ <= keep_bytes);
  if (resident_ <= keep_bytes) return;
  const uint64_t from = RoundUp(keep_bytes, 4096);
  const uint64_t end = RoundUp(resident_, kStepBytes);
  if (from < end) ::madvise(arena_.data() + from, end - from, MADV_DONTNEED);
  resident_ = keep_bytes;
  if (keep_bytes == 0) {
    std::vector<std::byte>().swap(tables_);
    std::vector<Segment>().swap(segments_);
  }
}

}  // namespace holdfast
