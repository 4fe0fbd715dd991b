// The ring's file, mapped (ring_layout.h): the circle twice, one after the other,
// so that every record lies in one piece. What either side tells the other
// through its header is here, so that no wake is forgotten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/descriptor.h"
#include "base/result.h"
#include "disk/ring_layout.h"

namespace holdfast {

class Ring {
 public:
  // Replaces what is at `path`: a reader of the former one keeps that. The
  // memory is taken by Reserve() only.
  static Result<Ring> Create(const std::string& path, uint64_t ring_bytes, uint64_t image_bytes);
  static Result<Ring> Open(const std::string& path);

  RingHeader& header() const { return *reinterpret_cast<RingHeader*>(mapping_.data()); }
  uint64_t ring_bytes() const { return ring_bytes_; }
  uint64_t image_bytes() const { return header().image_bytes; }
  int fd() const { return file_.get(); }
  // Where `lsn` lies: in memory, with up to a whole circle behind it, and in the file.
  std::byte* At(uint64_t lsn) const {
    return mapping_.data() + kRingHeaderBytes + lsn % ring_bytes_;
  }
  uint64_t FileOffset(uint64_t lsn) const { return kRingHeaderBytes + lsn % ring_bytes_; }

  // Takes the name away, unless another ring has it by now; who has it open keeps it.
  void Remove(const std::string& path) const;

  // All of the circle's memory, now: later there is no way to say that there is none.
  Status Reserve();

  // The server: records below `head` are complete.
  void Publish(uint64_t head) const;
  // The addon: sleeps until there is something from `lsn` on, or for so long, or
  // until Wake(). Returns the head.
  uint64_t WaitForHead(uint64_t lsn, int64_t timeout_ms) const;
  void WakeReader() const;

  // The addon: everything before `tail` was received, its space is free.
  void Free(uint64_t tail) const;
  // The addon: right before QEMU is told to stop, and when that has been answered.
  void SetStopPending(bool pending) const;
  // The server's writers look again at whether there is room.
  void WakeWriters() const;

 private:
  Ring(Descriptor file, Mapping mapping, uint64_t ring_bytes)
      : file_(std::move(file)), mapping_(std::move(mapping)), ring_bytes_(ring_bytes) {}
  static Result<Ring> Map(Descriptor file, uint64_t ring_bytes, const std::string& path);

  Descriptor file_;
  Mapping mapping_;
  uint64_t ring_bytes_;
};

}  // namespace holdfast
