// A ring for zero-copy sends: what of io_uring the kernel lets us use, and the
// ABI that Debian 12's liburing 2.3 lacks.
//
// Sources: include/uapi/linux/io_uring.h of Linux 6.2 and 6.15, and
// io_uring_enter(2). Found out at run time, never assumed: io_uring may be
// switched off (kernel.io_uring_disabled), hidden by a seccomp filter, or older.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>

#include "base/result.h"

namespace holdfast {

namespace abi {
inline constexpr uint16_t kSendZcReportUsage = 1 << 3;        // IORING_SEND_ZC_REPORT_USAGE, 6.2
inline constexpr uint32_t kNotificationZcCopied = 1u << 31;   // IORING_NOTIF_USAGE_ZC_COPIED
inline constexpr uint8_t kOpSendZc = 47;                      // IORING_OP_SEND_ZC, 6.0
inline constexpr uint8_t kOpSendMsgZc = 48;                   // IORING_OP_SENDMSG_ZC, 6.1
static_assert(IORING_OP_SEND_ZC == kOpSendZc && IORING_OP_SENDMSG_ZC == kOpSendMsgZc);
static_assert(sizeof(io_uring_sqe) == 64 && sizeof(io_uring_cqe) == 16);
}  // namespace abi

class Uring {
 public:
  // Places for registered buffers, all empty at first.
  static constexpr unsigned kBuffersMax = 128;

  struct Abilities {
    bool usage_reports = false;           // notifications say what was copied
    bool fixed_buffers = false;           // SEND_ZC from registered buffers
    bool vectored_fixed_buffers = false;  // SENDMSG_ZC from them, too (6.15)
  };

  // kUnsupported, and why, where there is no ring to be had or none that sends
  // without copying.
  static Result<std::unique_ptr<Uring>> Open();
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  io_uring* get() { return &ring_; }
  int fd() const { return ring_.ring_fd; }
  const Abilities& abilities() const { return abilities_; }

 private:
  Uring() = default;
  Status Probe();

  io_uring ring_{};
  Abilities abilities_;
};

}  // namespace holdfast
