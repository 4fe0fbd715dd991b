// The pages of a VM that was stopped here and runs elsewhere already, for
// whoever lacks them: demanded ones first (postcopy/page_order.h).
//
// What is listed once is served for as long as it takes: over one connection
// after the other, each of which begins with what the other side still lacks.
// Bytes leave by reference where the file allows it: the VM is stopped, so no
// page of it changes any more (rule "no torn pages").
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "postcopy/page_order.h"
#include "send/page_run.h"
#include "send/page_sender.h"
#include "send/stream_socket.h"
#include "wire/frame.h"
#include "wire/page_frame.h"

namespace holdfast {

// Any thread reads it while another one serves.
struct ServeProgress {
  std::atomic<uint64_t> pages{0};
  std::atomic<uint64_t> pages_left{0};  // not sent yet
  std::atomic<uint64_t> demanded_pages{0};
  std::atomic<uint64_t> background_pages{0};
  std::atomic<uint64_t> zero_pages{0};
  std::atomic<uint64_t> bytes{0};
  std::atomic<uint64_t> connections{0};  // on which pages were asked for
};

class PageServer {
 public:
  // `source` is guest RAM, and outlives the server, as `progress` does.
  PageServer(const PageSource& source, uint32_t page_size, std::vector<PageRun> pages,
             std::vector<PageRun> hot, ServeProgress& progress);

  // Serves over one connection, until the other side has all pages; `hello` is
  // that of the session. kPeerLost, kConnect: another may be tried.
  Result<PagesHaveBody> Serve(Descriptor connected, HelloBody hello, int timeout_ms,
                              const CancelSignal& cancel);

 private:
  Status Handshake(StreamSocket& socket, const HelloBody& hello, int timeout_ms);
  Status Wait(const StreamSocket& socket, const CancelSignal& cancel, bool sending,
              bool& readable, bool& writable) const;
  Status Hear(StreamSocket& socket);
  Status Handle(const FrameHeader& header, std::span<const std::byte> table,
                std::span<const std::byte> payload);
  Status SendPortion(StreamSocket& socket);
  Status SendZeros(StreamSocket& socket, const PageRun& run, bool demanded);
  Status SendData(StreamSocket& socket, const PageRun& run, bool demanded);
  Status SendPages(StreamSocket& socket, const PageRun& run);
  const std::byte* At(uint64_t page) const { return source_.base + page * page_size_; }

  const PageSource source_;
  const uint32_t page_size_;
  const uint64_t ram_pages_;
  const std::vector<PageRun> pages_;
  const std::vector<PageRun> hot_;
  ServeProgress& progress_;

  // Of one connection.
  std::unique_ptr<PageSender> sender_;
  bool by_copy_ = false;
  std::vector<std::byte> in_;
  std::optional<PageListReader> lacks_;
  std::optional<PageOrder> order_;  // none: it has not been said what is lacking
  std::optional<PagesHaveBody> have_;
};

}  // namespace holdfast
