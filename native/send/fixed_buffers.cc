#include "send/fixed_buffers.h"

#include <algorithm>

namespace holdfast {
namespace {

bool Update(Uring& ring, unsigned index, const iovec& part) {
  const __u64 tag = 0;
  return io_uring_register_buffers_update_tag(ring.get(), index, &part, &tag, 1) == 1;
}

}  // namespace

std::optional<FixedBuffers::Buffer> FixedBuffers::Find(Uring& ring, const PageSource& source,
                                                       const std::byte* address) {
  if (!source.pinnable || !ring.abilities().fixed_buffers) return std::nullopt;
  if (source.base != base_ || source.size != size_) {
    Forget(ring);
    base_ = source.base;
    size_ = source.size;
  }
  const uint64_t index = static_cast<uint64_t>(address - base_) / kChunkBytes;
  if (index >= chunks_.size()) return std::nullopt;
  const uint64_t offset = index * kChunkBytes;
  const uint64_t bytes = std::min(kChunkBytes, size_ - offset);
  Chunk& chunk = chunks_[index];
  if (chunk == Chunk::kUnknown) {
    const iovec part{const_cast<std::byte*>(base_ + offset), bytes};
    chunk = Update(ring, static_cast<unsigned>(index), part) ? Chunk::kRegistered : Chunk::kRefused;
  }
  if (chunk == Chunk::kRefused) return std::nullopt;
  return Buffer{static_cast<uint16_t>(index), base_ + offset, base_ + offset + bytes};
}

void FixedBuffers::Forget(Uring& ring) {
  for (size_t i = 0; i < chunks_.size(); i++) {
    if (chunks_[i] == Chunk::kRegistered) Update(ring, static_cast<unsigned>(i), {});
    chunks_[i] = Chunk::kUnknown;
  }
}

}  // namespace holdfast
