// How page bytes get from a source to the socket: one interface, one file per
// strategy.
//
//   copy      sendmsg from the mapping: the kernel copies, no page is pinned
//   sendfile  one call per extent: by reference, a call for each run
//   splice    file → pipe → socket in batches: by reference, fewer wake-ups
//
// By reference means that the bytes are read when they leave, and again on
// retransmission ("no torn pages", DESIGN part 3): the caller keeps them as
// they are until the backup has acknowledged the epoch.
#pragma once

#include <memory>
#include <span>

#include "base/result.h"
#include "send/epoch_writer.h"
#include "send/page_run.h"
#include "send/stream_socket.h"

namespace holdfast {

// Bytes of a source, from its base.
struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

class PageSender {
 public:
  virtual ~PageSender() = default;

  // Returns when the kernel has taken all extents, in order. More frames
  // always follow pages, so the last segment may be held back. kUnsupported:
  // this file cannot be sent by reference (hugetlbfs), and nothing was sent.
  virtual Status Send(const PageSource& source, std::span<const Extent> extents,
                      StreamSocket& socket) = 0;

  static std::unique_ptr<PageSender> Make(Strategy strategy);
};

std::unique_ptr<PageSender> MakeCopySender();
std::unique_ptr<PageSender> MakeSendfileSender();
std::unique_ptr<PageSender> MakeSpliceSender();

}  // namespace holdfast
