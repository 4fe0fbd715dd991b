// What the guest has sent and may not leave yet: the packet gate's decisions,
// without sockets, threads or clocks.
//
//     head ──────── released ──────── boundary ──────── end
//      │  on its way to │ checkpoint not  │ sent in the   │
//      │  the target    │ acknowledged    │ running epoch │
//
//   Boundary()  boundary := end of the last whole frame   (VM stopped, socket drained)
//   Release()   released := boundary                      (the checkpoint is acknowledged)
//   Open()      everything is released, and so is what comes later
//
// Output commit: a frame leaves only once `released` is behind it.
// Bounded: past bytes_max nothing is read, except for a boundary, and never
// more than kOvershootBytesMax past it: the ring is no larger.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "output/frame_ring.h"

namespace holdfast {

// Room past the bound for what QEMU's socket holds when a boundary drains it
// (kQemuSocketBytes, counted by the kernel with its own overhead), and for what
// the guest sends between Prepare() and its stop.
inline constexpr uint64_t kOvershootBytesMax = 16 << 20;
// At least one frame of any size, and then some.
inline constexpr uint64_t kHeldBytesMaxMin = 128 << 10;

class HeldFrames {
 public:
  static Result<HeldFrames> Create(uint64_t bytes_max, bool hold);

  // Where bytes of QEMU's socket go; none at the bound. `past_bound`: up to the
  // ring's size, for a boundary that must see all.
  RingParts Room(bool past_bound) const;
  bool full() const { return Room(false).bytes == 0; }
  // So many bytes have come. False: no frames of QEMU's; Discard() comes next.
  bool Received(uint64_t bytes);

  // Each returns the frames concerned.
  uint64_t Hold();      // held already
  uint64_t Prepare();   // held; until the next boundary the bound is the ring's size
  uint64_t Boundary();  // new before the mark
  uint64_t Release();   // let go
  uint64_t Open();      // let go

  // True once per epoch, when its first frame is held.
  bool TakeOutput();
  // Whoever is told next knows nothing of an output that was taken.
  void ForgetOutput() { output_taken_ = false; }

  // QEMU's connection has ended: what is held will never be explained by a
  // checkpoint of its, and the rest of a frame will never come. Returns the
  // frames that were held.
  uint64_t Discard();

  // The frames on their way to the target: ring().head() up to this mark.
  const FrameMark& released() const { return released_; }
  FrameRing& ring() { return ring_; }
  const FrameRing& ring() const { return ring_; }

  bool holding() const { return hold_; }
  uint64_t frames() const { return ring_.whole().frames - ring_.head().frames; }
  uint64_t bytes() const { return ring_.used(); }
  uint64_t bytes_peak() const { return bytes_peak_; }
  uint64_t boundary_frames() const { return boundary_.frames - released_.frames; }

 private:
  HeldFrames(FrameRing ring, uint64_t bytes_max, bool hold)
      : ring_(std::move(ring)), bytes_max_(bytes_max), hold_(hold) {}

  FrameRing ring_;
  uint64_t bytes_max_;
  bool hold_;
  bool prepared_ = false;
  bool output_taken_ = false;
  FrameMark released_;
  FrameMark boundary_;
  uint64_t bytes_peak_ = 0;
};

}  // namespace holdfast
