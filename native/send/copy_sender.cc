// sendmsg straight from the mapping, as many extents per call as IOV_MAX allows.

#include <vector>

#include "send/page_sender.h"

namespace holdfast {
namespace {

class CopySender final : public PageSender {
 public:
  Status Send(const PageSource& source, std::span<const Extent> extents,
              StreamSocket& socket) override {
    parts_.clear();
    uint64_t bytes = 0;
    for (const Extent& extent : extents) {
      parts_.push_back({const_cast<std::byte*>(source.base + extent.offset), extent.bytes});
      bytes += extent.bytes;
    }
    HF_TRY(socket.SendAll(parts_, true));
    counters_.copied_bytes += bytes;
    return {};
  }

  SenderCounters counters() const override { return counters_; }

 private:
  SenderCounters counters_;
  std::vector<iovec> parts_;  // kept: its size is that of the largest batch
};

}  // namespace

std::unique_ptr<PageSender> MakeCopySender() { return std::make_unique<CopySender>(); }

}  // namespace holdfast
