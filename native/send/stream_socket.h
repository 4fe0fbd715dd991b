// A non-blocking stream socket of the sending side: every wait also watches the
// CancelSignal, and no wait outlasts the peer's silence.
//
// Where MSG_ZEROCOPY is used, notifications on the error queue make poll answer
// POLLERR at once, whatever it was to wait for. So every wait here empties that
// queue into the ledger before it goes on, and never spins on it.
//
// The socket's set-up, and what is left alone on purpose:
//  - TCP_NODELAY, and MSG_MORE on all that is followed by more: segments are full
//    while an epoch lasts, and its last one leaves at once;
//  - no SO_SNDBUF: setting it would end the kernel's own tuning, which goes up to
//    tcp_wmem[2], and be cut to the far smaller wmem_max;
//  - no pacing and no congestion control of ours: that is the kernel's, which
//    knows the path, and the operator's (sysctl, qdisc), who knows the link.
//
// sendfile and splice raise SIGPIPE on a closed peer and have no MSG_NOSIGNAL:
// the data plane's threads (base/thread.h) block all signals.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "send/completion_ledger.h"

namespace holdfast {

// A peer that takes or sends nothing for so long, while we wait for it, is lost.
inline constexpr int kPeerSilenceMsMax = 10'000;

// What is left of the parts once their first `bytes` were taken.
std::span<iovec> WithoutFirst(std::span<iovec> parts, uint64_t bytes);

class StreamSocket {
 public:
  // Takes a connected socket; makes it non-blocking and sets the TCP options.
  StreamSocket(Descriptor socket, const CancelSignal& cancel);

  // All `host` resolves to, in order, within timeout_ms. Resolving a name (not
  // a literal address) is the C library's and cannot be cancelled.
  static Result<Descriptor> Dial(const std::string& host, uint16_t port, int timeout_ms,
                                 const CancelSignal& cancel);

  int fd() const { return socket_.get(); }

  // Sends everything, adjusting `parts` as it goes. `more`: the last segment
  // may wait for what follows.
  Status SendAll(std::span<iovec> parts, bool more);

  // Waits until the socket takes bytes again, after EAGAIN. kPeerLost as well
  // when the peer speaks meanwhile: it only does so to refuse. Unless TwoWay.
  Status WaitWritable();

  // The peer speaks whenever it likes, and a thread of its own listens.
  void TwoWay() { two_way_ = true; }

  // Waits until one of them can be read, or has ended: its index, the lowest of
  // several. kPeerLost after timeout_ms. All have the same CancelSignal.
  static Result<size_t> AwaitFirst(std::span<StreamSocket* const> sockets, int timeout_ms);

  // Reads exactly so many bytes, within timeout_ms of silence.
  Status ReceiveAll(std::span<std::byte> to, int timeout_ms);

  // Closing will drop what the kernel still has queued, instead of sending it
  // later: pages sent by reference must not leave once nobody waits for them.
  void AbortOnClose();

  // SO_ZEROCOPY; kUnsupported on sockets and kernels without it.
  Status EnableZeroCopy();

  // Of the calls made with MSG_ZEROCOPY; whoever makes one notes it here.
  CompletionLedger& completions() { return completions_; }
  const CompletionLedger& completions() const { return completions_; }

  // Moves all notifications from the error queue to the ledger; false: there was none.
  bool ReapCompletions();

  // Waits until the error queue has a notification, or for timeout_ms.
  Status AwaitErrorQueue(int timeout_ms);

  // Waits until another descriptor is readable, or for timeout_ms, watching the
  // same CancelSignal.
  Status AwaitReadable(int other_fd, int timeout_ms);

  // kCancelled once the signal was given: for loops that may never have to wait.
  Status CheckCancelled() const;

  // TCP_CORK, for strategies whose calls cannot say "more".
  void SetCork(bool corked);

  // What the kernel takes beyond what is on its way; 0, as at first: as much as it
  // likes. For who decides late what to send. Unlike SO_SNDBUF it leaves the
  // kernel's own tuning as it is.
  void LimitUnsent(uint64_t bytes);

  // What errno of a call that moved bytes means; `syscall` names the call.
  Error LostBy(const char* syscall) const;

  void CountSyscall() { syscalls_++; }
  uint64_t syscalls() const { return syscalls_; }

 private:
  Result<short> Wait(short events, int timeout_ms);
  bool IsReady(short answered, short events);

  Descriptor socket_;
  const CancelSignal& cancel_;
  CompletionLedger completions_;
  uint64_t syscalls_ = 0;
  bool two_way_ = false;
};

}  // namespace holdfast
