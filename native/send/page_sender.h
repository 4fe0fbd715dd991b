// How page bytes get from a source to the socket: one interface, one file per
// strategy.
//
//   copy      sendmsg from the mapping: the kernel copies, no page is pinned
//   sendfile  one call per extent: by reference, a call for each run
//   splice    file → pipe → socket in batches: by reference, fewer wake-ups
//   vmsplice  mapping → pipe → socket: as splice, but one call fills the pipe,
//             however scattered the extents
//   zerocopy  sendmsg with MSG_ZEROCOPY: by reference without a pipe; the kernel
//             reports on the socket's error queue when it holds a page no more
//   uring     io_uring's zero-copy sends, from registered buffers where there
//             are any; the kernel reports on the ring
//
// By reference means that the bytes are read when they leave, and again on
// retransmission ("no torn pages", DESIGN part 3): the caller keeps them as
// they are until the backup has acknowledged the epoch *and* Finish returned.
// Neither is enough by itself: a completion says nothing of the backup, and an
// acknowledgement nothing of what a device of ours still reads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "send/page_run.h"
#include "send/strategy.h"
#include "send/stream_socket.h"

namespace holdfast {

// Bytes of a source, from its base.
struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Since the sender was made. Bytes of zerocopy and uring are counted when the
// kernel has reported on them, so they are complete after Finish.
struct SenderCounters {
  uint64_t reference_bytes = 0;  // not copied by us nor, as far as it says, by the kernel
  uint64_t copied_bytes = 0;     // copied by the kernel
  uint64_t completions = 0;      // calls that the kernel has reported on
  uint64_t fallbacks = 0;        // times the sender went over to copying, for a while or for good
};

// Used by one thread at a time, and always with the same socket.
class PageSender {
 public:
  virtual ~PageSender() = default;

  // Returns when the kernel has taken all extents, in order. More frames
  // always follow pages, so the last segment may be held back. kUnsupported:
  // this source cannot be sent by this strategy (sendfile and splice: a file on
  // hugetlbfs; uring: not on this kernel), and nothing of this call was sent.
  // Never from copy.
  virtual Status Send(const PageSource& source, std::span<const Extent> extents,
                      StreamSocket& socket) = 0;

  // Waits until the kernel holds no page for this sender any more, as far as
  // completions tell. The copies of copy are the kernel's own; what sendfile,
  // splice and vmsplice lent comes back with the peer's TCP acknowledgement,
  // of which the acknowledgement of the epoch is proof. kPeerLost after
  // kPeerSilenceMsMax, kCancelled: pages may still be read, until the
  // connection is closed with AbortOnClose.
  virtual Status Finish(StreamSocket&) { return {}; }

  virtual SenderCounters counters() const = 0;

  static std::unique_ptr<PageSender> Make(Strategy strategy);
};

std::unique_ptr<PageSender> MakeCopySender();
std::unique_ptr<PageSender> MakeSendfileSender();
std::unique_ptr<PageSender> MakeSpliceSender();
std::unique_ptr<PageSender> MakeVmspliceSender();
std::unique_ptr<PageSender> MakeZerocopySender();
std::unique_ptr<PageSender> MakeUringSender();

}  // namespace holdfast
