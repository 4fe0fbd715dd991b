// Pages from the host that the VM came from, over the page stream. A connection
// that breaks is lost, no more: the source makes another, and lists its pages
// anew; what is still lacking is told, so that nothing comes twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/descriptor.h"
#include "postcopy/page_links.h"
#include "postcopy/page_origin.h"
#include "wire/frame.h"
#include "wire/page_frame.h"

namespace holdfast {

class LinkOrigin final : public PageOrigin {
 public:
  static Result<std::unique_ptr<LinkOrigin>> Create(std::shared_ptr<PageLinks> links,
                                                    uint64_t ram_pages, uint32_t page_size);

  int fd() const override { return ready_.get(); }
  bool pushing() const override { return pushing_; }
  Status Demand(uint64_t page, PageSink& sink) override;
  Status Take(PageSink& sink) override;
  Status Complete(const Report& report) override;

 private:
  LinkOrigin(std::shared_ptr<PageLinks> links, Descriptor ready, uint64_t ram_pages,
             uint32_t page_size);

  Status Watch(int fd, uint32_t events, int operation) const;
  Status TakeUp(PageLinks::Link link);
  Status Receive(bool& more);
  Result<bool> HandleFrame(PageSink& sink);
  Status Handle(const FrameHeader& header, std::span<const std::byte> table,
                std::span<const std::byte> payload, PageSink& sink);
  Status OnList(std::span<const std::byte> table, std::span<const std::byte> payload,
                PageSink& sink);
  Status OnData(const FrameHeader& header, std::span<const std::byte> payload, PageSink& sink);
  void Queue(std::span<const std::byte> bytes);
  void QueueFrame(FrameType type, std::span<const std::byte> payload);
  Status Flush();
  void Lose(const Error& why, PageSink& sink);

  const std::shared_ptr<PageLinks> links_;
  const Descriptor ready_;  // epoll over the links and the socket
  const uint64_t ram_pages_;
  const uint32_t page_size_;

  Descriptor socket_;
  bool listed_ = false;     // on this connection
  bool pushing_ = false;    // a whole frame is in the buffer already
  bool awaits_room_ = false;
  PageListReader list_;
  std::optional<PagesHaveBody> have_;  // told on every connection from then on
  std::vector<std::byte> in_;          // from in_done_ on
  size_t in_done_ = 0;
  std::vector<std::byte> out_;
};

}  // namespace holdfast
