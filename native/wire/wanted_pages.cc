#include "wire/wanted_pages.h"

#include <algorithm>

#include "base/result.h"

namespace holdfast {
namespace {

// A WANTED frame always finds room in the socket: it is sent without waiting.
constexpr size_t kAskedBytesMax = 8 << 10;

}  // namespace

void WantedPages::Want(const WireRun& run) { wanted_.push_back(run); }

std::span<const std::byte> WantedPages::Ask() {
  HF_ASSERT(missing_ == 0 && !wanted_.empty());
  std::ranges::sort(wanted_, {}, &WireRun::first_page);
  table_.Clear();
  size_t taken = 0;
  while (taken < wanted_.size() && table_.bytes().size() + kRunBytesMax <= kAskedBytesMax) {
    WireRun run = wanted_[taken++];
    while (taken < wanted_.size() && wanted_[taken].first_page == run.first_page + run.pages) {
      run.pages += wanted_[taken++].pages;
    }
    table_.Add(run);
    HF_ASSERT(asked_.Add(run.first_page, run.pages));
    missing_ += run.pages;
  }
  wanted_.erase(wanted_.begin(), wanted_.begin() + static_cast<ptrdiff_t>(taken));
  return table_.bytes();
}

bool WantedPages::Came(const WireRun& run) {
  if (!asked_.Remove(run.first_page, run.pages)) return false;
  missing_ -= run.pages;
  return true;
}

void WantedPages::Clear() {
  wanted_.clear();
  asked_.Clear();
  missing_ = 0;
}

}  // namespace holdfast
