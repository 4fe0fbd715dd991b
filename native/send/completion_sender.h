// What zerocopy and uring have in common: pages that are lent to the kernel
// call by call, and come back with completions.
//
//            ┌── bounded: calls and bytes in flight ──┐
//   Attempt ─┤ took bytes: they are in the ledger     ├─► Reap ─► ledger ─► policy
//            └── EAGAIN: wait   ENOBUFS: reap, retry, else copy the rest ──┘
//
// Only one call is under way at a time: two sends of one socket could interleave
// where the first is cut short.
#pragma once

#include <vector>

#include "send/completion_ledger.h"
#include "send/page_sender.h"
#include "send/zero_copy_policy.h"

namespace holdfast {

class CompletionSender : public PageSender {
 public:
  // Below this a copy is cheaper than pinning and its completion (msg_zerocopy.rst).
  static constexpr uint64_t kReferenceBytesMin = 10 << 10;
  static constexpr size_t kCallsInFlightMax = 512;
  // One call may go beyond it by what the socket's own buffer takes.
  static constexpr uint64_t kBytesInFlightMax = uint64_t{64} << 20;

  Status Send(const PageSource& source, std::span<const Extent> extents,
              StreamSocket& socket) final;
  Status Finish(StreamSocket& socket) final;
  SenderCounters counters() const final;

 protected:
  // Before the first call. kUnsupported ends in a copy, for good.
  virtual Status Prepare(StreamSocket& socket) = 0;

  // Offers the parts to the kernel without waiting, as many as one call takes.
  // Bytes taken, which are in the ledger then; or a negative errno, and nothing
  // was taken. `parts` are the caller's to advance.
  virtual int64_t Attempt(const PageSource& source, std::span<iovec> parts,
                          StreamSocket& socket) = 0;

  // Passes the notifications that are there to the ledger; false: there was none.
  virtual bool Reap(StreamSocket& socket) = 0;

  // Waits until Reap may find one, or for timeout_ms.
  virtual Status AwaitNotification(StreamSocket& socket, int timeout_ms) = 0;

  virtual const CompletionLedger& ledger(const StreamSocket& socket) const = 0;

 private:
  Status SendByReference(const PageSource& source, std::span<iovec> parts, StreamSocket& socket);
  Status SendPlain(std::span<iovec> parts, StreamSocket& socket);
  Status AwaitRoom(StreamSocket& socket);
  Result<bool> AwaitBelow(size_t calls, uint64_t bytes, double timeout_ms, StreamSocket& socket);
  Result<bool> RetryWithoutBuffers(int& tries, StreamSocket& socket);
  void TakeNotice(StreamSocket& socket);

  enum class Readiness { kUnknown, kReady, kUnsupported };
  Readiness readiness_ = Readiness::kUnknown;
  std::string unsupported_;    // why
  std::vector<iovec> parts_;   // kept: its size is that of the largest batch
  ZeroCopyPolicy policy_;
  CompletionLedger::Totals reported_;
  uint64_t plain_bytes_ = 0;
};

}  // namespace holdfast
