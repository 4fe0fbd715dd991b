// io_uring's SEND_ZC and SENDMSG_ZC. Each call yields its result (with F_MORE:
// pages are lent) and, later, a notification (F_NOTIF: they are back).
//
// The socket is non-blocking, so a call never waits inside the ring: it answers
// at once, and waiting stays with StreamSocket, which can be cancelled and knows
// when a peer has been silent for too long.

#include <limits.h>
#include <sys/socket.h>

#include <algorithm>
#include <optional>

#include "send/completion_sender.h"
#include "send/fixed_buffers.h"
#include "send/uring.h"

namespace holdfast {
namespace {

constexpr int kSubmitTriesMax = 1000;
constexpr int kSubmitPauseMs = 1;
constexpr int kSendFlags = MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE;

class UringSender final : public CompletionSender {
 protected:
  Status Prepare(StreamSocket& socket) override {
    // What zero-copy sends accept is what SO_ZEROCOPY accepts: TCP, not Unix sockets.
    HF_TRY(socket.EnableZeroCopy());
    auto ring = Uring::Open();
    if (!ring.ok()) return ring.error();
    ring_ = std::move(ring).value();
    return {};
  }

  int64_t Attempt(const PageSource& source, std::span<iovec> parts,
                  StreamSocket& socket) override {
    const Batch batch = Choose(source, parts);
    io_uring_sqe* entry = io_uring_get_sqe(ring_->get());
    HF_ASSERT(entry != nullptr);  // one call at a time
    msghdr message{};
    if (batch.parts.size() == 1) {
      io_uring_prep_send_zc(entry, socket.fd(), batch.parts[0].iov_base, batch.parts[0].iov_len,
                            kSendFlags, 0);
    } else {
      message.msg_iov = batch.parts.data();
      message.msg_iovlen = batch.parts.size();
      io_uring_prep_sendmsg_zc(entry, socket.fd(), &message, kSendFlags);
    }
    entry->ioprio = ring_->abilities().usage_reports ? abi::kSendZcReportUsage : 0;
    if (batch.buffer) {
      entry->ioprio |= IORING_RECVSEND_FIXED_BUF;
      entry->buf_index = *batch.buffer;
    }
    entry->user_data = ledger_.next_id();
    return Submit(socket);
  }

  bool Reap(StreamSocket&) override { return Harvest(); }

  Status AwaitNotification(StreamSocket& socket, int timeout_ms) override {
    return socket.AwaitReadable(ring_->fd(), timeout_ms);
  }

  const CompletionLedger& ledger(const StreamSocket&) const override { return ledger_; }

 private:
  struct Batch {
    std::span<iovec> parts;
    std::optional<uint16_t> buffer;  // the registered one they all lie in
  };

  // The first parts, up to where they leave a registered buffer or one call ends.
  Batch Choose(const PageSource& source, std::span<iovec> parts) {
    const auto address = [](const iovec& part) {
      return static_cast<const std::byte*>(part.iov_base);
    };
    const std::span<iovec> most = parts.first(std::min<size_t>(parts.size(), IOV_MAX));
    const auto buffer = fixed_.Find(*ring_, source, address(parts[0]));
    if (!buffer) return {most, std::nullopt};
    if (const auto beyond = address(parts[0]) + parts[0].iov_len; beyond > buffer->end) {
      // Across a border: the first part as far as it goes.
      first_ = {parts[0].iov_base, static_cast<size_t>(buffer->end - address(parts[0]))};
      return {{&first_, 1}, buffer->index};
    }
    const auto outside = std::find_if(most.begin(), most.end(), [&](const iovec& part) {
      return address(part) < buffer->begin || address(part) + part.iov_len > buffer->end;
    });
    const auto within = most.first(static_cast<size_t>(outside - most.begin()));
    if (within.size() == 1 || ring_->abilities().vectored_fixed_buffers) {
      return {within, buffer->index};
    }
    return {most, std::nullopt};
  }

  int64_t Submit(StreamSocket& socket) {
    result_.reset();
    for (int tries = 0; io_uring_submit(ring_->get()) < 0; tries++) {
      // No memory for the call (EAGAIN), or for its completion (EBUSY). It stays
      // in the queue, so it must not be offered a second time.
      if (tries == kSubmitTriesMax) return -EIO;
      Harvest();
      if (!socket.AwaitReadable(ring_->fd(), kSubmitPauseMs).ok()) return -EIO;
    }
    socket.CountSyscall();
    for (Harvest(); !result_; Harvest()) {
      io_uring_cqe* entry = nullptr;
      const int waited = io_uring_wait_cqe(ring_->get(), &entry);
      if (waited < 0 && waited != -EINTR) return -EIO;
    }
    return *result_;
  }

  // Takes what is in the completion queue; false: no notification.
  bool Harvest() {
    bool notified = false;
    io_uring_cqe* entry = nullptr;
    while (io_uring_peek_cqe(ring_->get(), &entry) == 0) {
      const auto id = static_cast<uint32_t>(entry->user_data);
      if ((entry->flags & IORING_CQE_F_NOTIF) != 0) {
        const bool copied = ring_->abilities().usage_reports &&
                            (static_cast<uint32_t>(entry->res) & abi::kNotificationZcCopied) != 0;
        notified = ledger_.Completed(id, id, copied);
        HF_ASSERT(notified);
      } else {
        result_ = entry->res;
        // A call that took nothing may still be followed by a notification.
        if ((entry->flags & IORING_CQE_F_MORE) != 0) {
          ledger_.Sent(static_cast<uint64_t>(std::max(entry->res, 0)));
        }
      }
      io_uring_cqe_seen(ring_->get(), entry);
    }
    return notified;
  }

  std::unique_ptr<Uring> ring_;
  FixedBuffers fixed_;
  CompletionLedger ledger_;
  iovec first_{};
  std::optional<int64_t> result_;
};

}  // namespace

std::unique_ptr<PageSender> MakeUringSender() { return std::make_unique<UringSender>(); }

}  // namespace holdfast
