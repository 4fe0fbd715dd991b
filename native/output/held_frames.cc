#include "output/held_frames.h"

#include <algorithm>
#include <utility>

namespace holdfast {

Result<HeldFrames> HeldFrames::Create(uint64_t bytes_max, bool hold) {
  if (bytes_max < kHeldBytesMaxMin) {
    return Error::Of(ErrorCode::kLimit, "the bound for held frames is " + std::to_string(bytes_max) +
                                            " bytes, the least is " +
                                            std::to_string(kHeldBytesMaxMin));
  }
  auto ring = FrameRing::Create(bytes_max + kOvershootBytesMax);
  if (!ring.ok()) return ring.error();
  return HeldFrames(std::move(ring).value(), bytes_max, hold);
}

RingParts HeldFrames::Room(bool past_bound) const {
  if (past_bound || prepared_) return ring_.Room(ring_.room());
  return ring_.Room(bytes_max_ - std::min(bytes_max_, ring_.used()));
}

bool HeldFrames::Received(uint64_t bytes) {
  const bool frames = ring_.Append(bytes);
  bytes_peak_ = std::max(bytes_peak_, ring_.used());
  if (!hold_) released_ = boundary_ = ring_.whole();
  return frames;
}

uint64_t HeldFrames::Hold() {
  hold_ = true;
  prepared_ = false;
  return ring_.whole().frames - released_.frames;
}

uint64_t HeldFrames::Prepare() {
  prepared_ = hold_;
  return ring_.whole().frames - released_.frames;
}

uint64_t HeldFrames::Boundary() {
  const uint64_t frames = ring_.whole().frames - boundary_.frames;
  boundary_ = ring_.whole();
  prepared_ = false;
  output_taken_ = false;
  return frames;
}

uint64_t HeldFrames::Release() {
  const uint64_t frames = boundary_.frames - released_.frames;
  released_ = boundary_;
  return frames;
}

uint64_t HeldFrames::Open() {
  const uint64_t frames = ring_.whole().frames - released_.frames;
  hold_ = false;
  prepared_ = false;
  released_ = boundary_ = ring_.whole();
  return frames;
}

bool HeldFrames::TakeOutput() {
  if (!hold_ || output_taken_ || ring_.whole().frames == boundary_.frames) return false;
  output_taken_ = true;
  return true;
}

uint64_t HeldFrames::Discard() {
  const uint64_t frames = ring_.whole().frames - released_.frames;
  ring_.Truncate(released_);
  boundary_ = released_;
  prepared_ = false;
  output_taken_ = false;
  return frames;
}

}  // namespace holdfast
