// The pipe between pages and socket that splice and vmsplice share: filled by
// reference, emptied by one call that keeps segments full (SPLICE_F_MORE).
#pragma once

#include <cstdint>

#include "base/descriptor.h"
#include "base/result.h"
#include "send/stream_socket.h"

namespace holdfast {

class SplicePipe {
 public:
  // A slot holds (part of) one page, whatever the page's size on disk or in the TLB.
  static constexpr uint64_t kSlotBytes = 4096;

  Status Open();  // does nothing if it is open
  bool is_open() const { return read_end_.valid(); }
  int write_end() const { return write_end_.get(); }
  uint64_t slots() const { return slots_; }

  // Moves all of the pipe's `in_pipe` bytes to the socket.
  Status Drain(uint64_t in_pipe, StreamSocket& socket);

  // Lets go of all pages in it. What a failed send left must never leave later.
  void Close();

 private:
  Descriptor read_end_;
  Descriptor write_end_;
  uint64_t slots_ = 0;
};

}  // namespace holdfast
