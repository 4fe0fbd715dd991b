// The staging mapping, registered with a ring: its pages are pinned once instead
// of looked up at every send.
//
// In chunks, each when it is first sent from, since the pool is as large as its
// limit and mostly never used. A chunk that can't be registered (RLIMIT_MEMLOCK,
// memory) is sent from without.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "send/page_run.h"
#include "send/uring.h"

namespace holdfast {

class FixedBuffers {
 public:
  static constexpr uint64_t kChunkBytes = uint64_t{8} << 20;
  // Of one source; what lies beyond is never registered.
  static constexpr uint64_t kRegisteredBytesMax = Uring::kBuffersMax * kChunkBytes;

  struct Buffer {
    uint16_t index = 0;
    const std::byte* begin = nullptr;
    const std::byte* end = nullptr;
  };

  // The buffer that `address` lies in.
  std::optional<Buffer> Find(Uring& ring, const PageSource& source, const std::byte* address);

 private:
  enum class Chunk : uint8_t { kUnknown, kRegistered, kRefused };

  void Forget(Uring& ring);

  const std::byte* base_ = nullptr;  // of the source that is registered
  size_t size_ = 0;
  std::array<Chunk, Uring::kBuffersMax> chunks_{};
};

}  // namespace holdfast
