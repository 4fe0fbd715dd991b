// A tap device that exists already, of this network namespace: one system call
// per frame, for a tap is no socket.

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include <cstring>
#include <utility>

#include "output/target.h"

namespace holdfast {
namespace {

// The device was removed, or taken from us.
bool MeansGone(int error) { return error == EBADFD || error == EFAULT || error == ENODEV; }

class TapTarget : public Target {
 public:
  explicit TapTarget(std::string name) : name_(std::move(name)) {}

  Status Open() override {
    const std::string what = "tap device " + name_;
    // TUNSETIFF would create one that vanishes with us.
    if (name_.size() >= IFNAMSIZ || ::if_nametoindex(name_.c_str()) == 0) {
      errno = ENODEV;
      return Error::FromErrno("if_nametoindex", what + " does not exist in this network namespace");
    }
    Descriptor tap(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!tap.valid()) return Error::FromErrno("open", "/dev/net/tun for " + what);
    ifreq request{};
    std::memcpy(request.ifr_name, name_.c_str(), name_.size());
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    if (::ioctl(tap.get(), TUNSETIFF, &request) != 0) {
      const char* const cause = errno == EBUSY    ? " is in use by another process"
                                : errno == EINVAL ? " is no tap device, or one with several queues"
                                                  : "";
      return Error::FromErrno("TUNSETIFF", what + cause);
    }
    // Whoever had it before may have left offloads on, and their frames have no checksums.
    if (::ioctl(tap.get(), TUNSETOFFLOAD, 0) != 0) {
      return Error::FromErrno("TUNSETOFFLOAD", what);
    }
    descriptor_ = std::move(tap);
    return {};
  }

  // The relay of a VM that is just ending has it still.
  bool MayAppear(const Error& error) const override { return error.sys_errno == EBUSY; }

  SendOutcome Send(FrameRing& ring, const FrameMark& end) override {
    SendOutcome outcome;
    while (ring.head().position < end.position && outcome.bytes < kSendBytesPerTurn &&
           outcome.frames + outcome.dropped < kSendFramesPerTurn) {
      const RingParts frame = ring.FirstPayload();
      if (::writev(fd(), frame.parts.data(), frame.count) < 0) {
        if (errno == EAGAIN) {
          outcome.blocked = true;
          break;
        }
        if (MeansGone(errno)) {
          outcome.lost_errno = errno;
          break;
        }
        outcome.dropped++;
        outcome.drop_errno = errno;
      } else {
        outcome.frames++;
        outcome.bytes += frame.bytes;
      }
      ring.ConsumeFrame();
    }
    return outcome;
  }

  ReceiveOutcome Receive(FrameRing& ring) override {
    while (ring.room() >= kPacketLengthBytes + kPacketBytesMax) {
      const RingParts room = ring.PayloadRoom();
      const ssize_t bytes = ::readv(fd(), room.parts.data(), room.count);
      if (bytes > 0) {
        ring.AppendFrame(static_cast<uint32_t>(bytes));
        continue;
      }
      if (bytes < 0 && errno != EAGAIN) return {errno};
      break;
    }
    return {};
  }

 private:
  const std::string name_;
};

}  // namespace

std::unique_ptr<Target> MakeTapTarget(std::string name) {
  return std::make_unique<TapTarget>(std::move(name));
}

}  // namespace holdfast
