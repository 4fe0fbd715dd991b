#include "output/frame_ring.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace holdfast {

Result<FrameRing> FrameRing::Create(size_t capacity) {
  HF_ASSERT(capacity >= kPacketLengthBytes + kPacketBytesMax);
  void* const memory = ::mmap(nullptr, capacity, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return Error::FromErrno("mmap", "memory for held frames", ErrorCode::kNoSpace);
  }
  return FrameRing(Mapping(memory, capacity), capacity);
}

bool FrameRing::Append(uint64_t bytes) {
  HF_ASSERT(bytes <= room());
  end_ += bytes;
  while (end_ - whole_.position >= kPacketLengthBytes) {
    const uint32_t length = LengthAt(whole_.position);
    if (length == 0 || length > kPacketBytesMax) return false;
    if (end_ - whole_.position < kPacketLengthBytes + length) break;
    whole_.position += kPacketLengthBytes + length;
    whole_.frames++;
  }
  return true;
}

void FrameRing::AppendFrame(uint32_t bytes) {
  HF_ASSERT(bytes > 0 && bytes <= kPacketBytesMax && end_ == whole_.position);
  for (size_t i = 0; i < kPacketLengthBytes; ++i) {
    memory_.data()[Offset(end_ + i)] = static_cast<std::byte>(bytes >> (24 - 8 * i));
  }
  HF_ASSERT(Append(kPacketLengthBytes + bytes));
}

RingParts FrameRing::FirstPayload() const {
  HF_ASSERT(head_frame_left_ == 0 && whole_.position > head_.position);
  return Parts(head_.position + kPacketLengthBytes, LengthAt(head_.position));
}

uint64_t FrameRing::Consume(uint64_t bytes) {
  HF_ASSERT(bytes <= whole_.position - head_.position);
  const uint64_t frames_before = head_.frames;
  while (bytes > 0) {
    const uint64_t left = head_frame_left();
    const uint64_t taken = std::min(left, bytes);
    head_.position += taken;
    bytes -= taken;
    head_frame_left_ = left - taken;
    if (head_frame_left_ == 0) head_.frames++;
  }
  if (used() == 0) base_ = end_;
  return head_.frames - frames_before;
}

void FrameRing::Truncate(const FrameMark& mark) {
  HF_ASSERT(mark.position >= head_.position && mark.position <= whole_.position);
  whole_ = mark;
  end_ = mark.position;
  if (used() == 0) base_ = end_;
}

RingParts FrameRing::Parts(uint64_t position, uint64_t bytes) const {
  RingParts parts;
  bytes = std::min(bytes, capacity_ - std::min(capacity_, position - head_.position));
  parts.bytes = bytes;
  while (bytes > 0) {
    const uint64_t offset = Offset(position);
    const uint64_t piece = std::min(bytes, capacity_ - offset);
    parts.parts[parts.count++] = {memory_.data() + offset, piece};
    position += piece;
    bytes -= piece;
  }
  return parts;
}

uint32_t FrameRing::LengthAt(uint64_t position) const {
  uint32_t length = 0;
  for (size_t i = 0; i < kPacketLengthBytes; ++i) {
    length = length << 8 | static_cast<uint32_t>(memory_.data()[Offset(position + i)]);
  }
  return length;
}

uint64_t FrameRing::head_frame_left() const {
  return head_frame_left_ > 0 ? head_frame_left_ : kPacketLengthBytes + LengthAt(head_.position);
}

}  // namespace holdfast
