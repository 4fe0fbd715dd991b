#include "capture/ahead_pages.h"

#include "guest/tracker.h"

namespace holdfast {

AheadPages::Superseded AheadPages::Supersede(const std::vector<PageRun>& dirty) {
  const auto drop = [&dirty](std::vector<PageRun>& runs) {
    if (runs.empty()) return uint64_t{0};
    const uint64_t before = PagesOf(runs);
    runs = Without(runs, dirty);
    return before - PagesOf(runs);
  };
  Superseded superseded;
  superseded.sent_pages = drop(sent_);
  superseded.pages = superseded.sent_pages + drop(unsent_);
  return superseded;
}

void AheadPages::Staged(const std::vector<PageRun>& runs) {
  places_ += PagesOf(runs);
  unsent_ = unsent_.empty() ? runs : holdfast::Superseded(unsent_, runs);
}

void AheadPages::Sent() {
  places_sent_ = places_;
  pages_sent_ += PagesOf(unsent_);
  slices_++;
  sent_ = sent_.empty() ? std::move(unsent_) : holdfast::Superseded(sent_, unsent_);
  unsent_.clear();
}

std::vector<PageRun> AheadPages::Pages() const { return UnionOf(sent_, unsent_); }

}  // namespace holdfast
