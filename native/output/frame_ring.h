// A ring of frames as they travel: each behind its length, so that one readv
// brings many and one writev takes many. Knows where frames begin and end,
// not what becomes of them.
//
//     head ─────────────── whole ───── end
//      │ frames to be taken │ part of a │ room
//
// Positions count bytes since the start and only grow, except in Truncate.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/descriptor.h"
#include "base/result.h"
#include "output/frame.h"

namespace holdfast {

// A place between two frames (or within the first, at the head).
struct FrameMark {
  uint64_t position = 0;
  uint64_t frames = 0;  // that lie before it, since the start
};

// Up to two pieces of memory: the ring's end and its beginning.
struct RingParts {
  std::array<iovec, 2> parts{};
  int count = 0;
  uint64_t bytes = 0;
};

class FrameRing {
 public:
  // Memory is taken as it is touched, and once touched kept: no allocation
  // while frames pass.
  static Result<FrameRing> Create(size_t capacity);

  uint64_t used() const { return end_ - head_.position; }
  uint64_t room() const { return capacity_ - used(); }
  const FrameMark& head() const { return head_; }
  const FrameMark& whole() const { return whole_; }

  // Where the next bytes go, at most so many of them.
  RingParts Room(uint64_t bytes_max) const { return Parts(end_, bytes_max); }
  // They are there now. False: a length is zero or over kPacketBytesMax; the
  // ring then has the whole frames before it, and can only be truncated.
  bool Append(uint64_t bytes);

  // The same for sources without lengths, a frame at a time: room() must be
  // kPacketLengthBytes + kPacketBytesMax at least.
  RingParts PayloadRoom() const { return Parts(end_ + kPacketLengthBytes, kPacketBytesMax); }
  void AppendFrame(uint32_t bytes);

  // What lies from the head up to a position: for sending the stream as it is.
  RingParts Upto(uint64_t position) const { return Parts(head_.position, position - head_.position); }
  // The first frame without its length. The head must be between two frames,
  // and a whole one follow.
  RingParts FirstPayload() const;

  // So many bytes from the head have left; returns the frames that are complete with them.
  uint64_t Consume(uint64_t bytes);
  // The same for one frame whose first bytes may have left before.
  void ConsumeFrame() { Consume(head_frame_left()); }

  // Forgets everything behind the mark, which must lie between head and whole.
  void Truncate(const FrameMark& mark);

 private:
  FrameRing(Mapping memory, size_t capacity) : memory_(std::move(memory)), capacity_(capacity) {}

  uint64_t Offset(uint64_t position) const { return (position - base_) % capacity_; }
  RingParts Parts(uint64_t position, uint64_t bytes) const;
  uint32_t LengthAt(uint64_t position) const;
  uint64_t head_frame_left() const;

  Mapping memory_;
  uint64_t capacity_ = 0;
  uint64_t base_ = 0;  // position of the memory's first byte: an empty ring begins there again
  FrameMark head_;
  FrameMark whole_;
  uint64_t end_ = 0;
  uint64_t head_frame_left_ = 0;  // of a frame of which a part has left; 0: none
};

}  // namespace holdfast
