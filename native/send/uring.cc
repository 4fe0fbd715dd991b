#include "send/uring.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <fstream>
#include <string>

#include "base/descriptor.h"

namespace holdfast {
namespace {

// One call is under way at a time. Notifications wait in the completion queue;
// beyond its size the kernel keeps them (IORING_FEAT_NODROP).
constexpr unsigned kSubmissionEntries = 8;
constexpr unsigned kCompletionEntries = 1024;

constexpr char kDisabledFile[] = "/proc/sys/kernel/io_uring_disabled";

Error NoRing(int failure) {
  std::string why = "io_uring: ";
  int disabled = 0;
  std::ifstream(kDisabledFile) >> disabled;
  if (failure == ENOSYS) {
    why += "not in this kernel, or hidden by a seccomp filter";
  } else if (failure == EPERM && disabled != 0) {
    why += "kernel.io_uring_disabled is " + std::to_string(disabled);
  } else if (failure == EPERM) {
    why += "not permitted (a seccomp filter or security module)";
  } else if (failure == ENOMEM) {
    why += "no memory that may be locked (RLIMIT_MEMLOCK)";
  } else {
    why += std::strerror(failure);
  }
  return Error{ErrorCode::kUnsupported, failure, "io_uring_setup", std::move(why)};
}

// What the ring makes of a send on a socket that was never connected: EPIPE
// where it knows the operation and its flags, EINVAL where it does not.
int TrySend(io_uring& ring, int socket, uint8_t opcode, uint16_t flags, std::byte* page,
            size_t page_bytes) {
  iovec part{page, page_bytes};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  io_uring_sqe* entry = io_uring_get_sqe(&ring);
  HF_ASSERT(entry != nullptr);
  if (opcode == abi::kOpSendMsgZc) {
    io_uring_prep_sendmsg_zc(entry, socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } else {
    io_uring_prep_send_zc(entry, socket, page, page_bytes, MSG_NOSIGNAL | MSG_DONTWAIT, 0);
  }
  entry->ioprio = flags;
  entry->buf_index = 0;
  const int submitted = io_uring_submit_and_wait(&ring, 1);
  if (submitted < 0) return -submitted;
  int answer = EINVAL;
  for (bool more = true; more;) {
    io_uring_cqe* entry_done = nullptr;
    int waited;
    do {
      waited = io_uring_wait_cqe(&ring, &entry_done);
    } while (waited == -EINTR);
    if (waited != 0) return -waited;
    if ((entry_done->flags & IORING_CQE_F_NOTIF) == 0) {
      answer = entry_done->res < 0 ? -entry_done->res : 0;
    }
    more = (entry_done->flags & IORING_CQE_F_MORE) != 0;
    io_uring_cqe_seen(&ring, entry_done);
  }
  return answer;
}

}  // namespace

Result<std::unique_ptr<Uring>> Uring::Open() {
  std::unique_ptr<Uring> uring(new Uring);
  // Notifications needn't interrupt the thread: it looks for them when it next
  // enters the kernel (5.19). Older kernels don't know the flag.
  int failure = EINVAL;
  for (const unsigned flags : {IORING_SETUP_COOP_TASKRUN, 0u}) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    params.cq_entries = kCompletionEntries;
    failure = -io_uring_queue_init_params(kSubmissionEntries, &uring->ring_, &params);
    if (failure != EINVAL) break;
  }
  if (failure != 0) {
    uring->ring_.ring_fd = -1;
    return NoRing(failure);
  }
  HF_TRY(uring->Probe());
  return uring;
}

Uring::~Uring() {
  if (ring_.ring_fd >= 0) io_uring_queue_exit(&ring_);
}

Status Uring::Probe() {
  const Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return Error::FromErrno("socket", "io_uring: probing");
  alignas(4096) static std::array<std::byte, 4096> page;
  const auto knows = [&](uint8_t opcode, uint16_t flags) {
    return TrySend(ring_, socket.get(), opcode, flags, page.data(), page.size()) == EPIPE;
  };
  if (!knows(abi::kOpSendZc, 0) || !knows(abi::kOpSendMsgZc, 0)) {
    return Error::Of(ErrorCode::kUnsupported,
                     "io_uring: no zero-copy sends in this kernel (Linux 6.1)");
  }
  abilities_.usage_reports = knows(abi::kOpSendMsgZc, abi::kSendZcReportUsage);
  if (io_uring_register_buffers_sparse(&ring_, kBuffersMax) != 0) return {};
  const iovec part{page.data(), page.size()};
  const __u64 tag = 0;
  if (io_uring_register_buffers_update_tag(&ring_, 0, &part, &tag, 1) != 1) return {};
  abilities_.fixed_buffers = knows(abi::kOpSendZc, IORING_RECVSEND_FIXED_BUF);
  abilities_.vectored_fixed_buffers = knows(abi::kOpSendMsgZc, IORING_RECVSEND_FIXED_BUF);
  const iovec none{};
  io_uring_register_buffers_update_tag(&ring_, 0, &none, &tag, 1);
  return {};
}

}  // namespace holdfast
