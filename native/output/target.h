// Where released frames go, and where the guest's frames come from: a tap
// device, or a stream socket with QEMU's framing.
//
// A target that is gone is like an unplugged cable: what is released
// meanwhile is dropped and counted, and it is opened again when it is back.
// A target that is slow is waited for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/descriptor.h"
#include "base/result.h"
#include "output/frame_ring.h"

namespace holdfast {

// What one call did. At most kSendBytesPerTurn are sent: the boundary of a VM
// that stands still must not wait behind a long batch.
struct SendOutcome {
  uint64_t frames = 0;
  uint64_t bytes = 0;  // without lengths
  uint64_t dropped = 0;
  int drop_errno = 0;
  bool blocked = false;  // takes no more until it is writable
  int lost_errno = 0;    // not 0: it is gone
};

struct ReceiveOutcome {
  int lost_errno = 0;
};

inline constexpr uint64_t kSendBytesPerTurn = 256 << 10;
inline constexpr uint64_t kSendFramesPerTurn = 128;

class Target {
 public:
  virtual ~Target() = default;

  // Opens it, again if it was lost.
  virtual Status Open() = 0;
  // Whether an error of the first Open() may pass by itself.
  virtual bool MayAppear(const Error& error) const = 0;
  void Close() { descriptor_.Close(); }
  bool open() const { return descriptor_.valid(); }
  int fd() const { return descriptor_.get(); }

  // Sends frames from the ring's head up to `end`, in order.
  virtual SendOutcome Send(FrameRing& ring, const FrameMark& end) = 0;
  // Reads what is there into the ring, as far as it has room for frames of any size.
  virtual ReceiveOutcome Receive(FrameRing& ring) = 0;

 protected:
  Descriptor descriptor_;
};

std::unique_ptr<Target> MakeTapTarget(std::string name);
std::unique_ptr<Target> MakeStreamTarget(std::string path);

}  // namespace holdfast
