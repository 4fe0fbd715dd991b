// What a layer of a checkpoint has of guest RAM: the state of each page, and
// the digest of each that has content. On disk it is the layer's index, beside
// a sparse file in which every page lies at its own place.
//
//   full       every page that is not zero: one that the index lacks is zero
//   increment  the pages written since the layer below; also those that are
//              zero now, so that the layer below does not show through
//
//   header  48 bytes  magic, version, page size, pages of RAM, counts, kind
//   runs    16 each   first page, pages, state; ascending, disjoint
//   digests  8 each   of the pages with content, in page order
//   trailer  8        xxh3-64 of all before; the manifest repeats it
//
// Little endian. In memory it takes 9 bytes per page of RAM, also for an
// increment: 0.2 % of the guest, for simple and fast look-ups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "send/page_run.h"

namespace holdfast {

enum class PageState : uint8_t { kAbsent = 0, kContent = 1, kZero = 2 };

// Of a page's content at its place: one that lies elsewhere does not match either.
uint64_t PageDigest(uint64_t page, const std::byte* content, size_t page_size);

class PageTable {
 public:
  PageTable(uint32_t page_size, uint64_t pages, bool full);

  // The file whose pages it names.
  struct Ram {
    std::string path;
    uint64_t bytes = 0;
  };
  // `trailer`: what the manifest says of the index. kChecksum if it is damaged or
  // another one, or if the RAM file is not as long as it says: so no number in it
  // takes more memory than RAM of which the file is there.
  static Result<PageTable> Read(const std::string& path, uint64_t trailer, const Ram& ram);
  // Creates the file, on stable storage when it returns. Its trailer.
  Result<uint64_t> Write(const std::string& path) const;

  void SetContent(uint64_t page, uint64_t digest) {
    Set(page, PageState::kContent);
    digests_[page] = digest;
  }
  // A full layer lacks its zero pages.
  void SetZero(uint64_t page) { Set(page, full_ ? PageState::kAbsent : PageState::kZero); }

  PageState state(uint64_t page) const { return states_[page]; }
  uint64_t digest(uint64_t page) const { return digests_[page]; }
  uint32_t page_size() const { return page_size_; }
  uint64_t pages() const { return states_.size(); }
  bool full() const { return full_; }
  uint64_t content_pages() const { return content_pages_; }
  uint64_t zero_pages() const { return zero_pages_; }

  // All that are not absent.
  std::vector<PageRun> Named() const;

 private:
  void Set(uint64_t page, PageState state);

  uint32_t page_size_;
  bool full_;
  uint64_t content_pages_ = 0;
  uint64_t zero_pages_ = 0;
  std::vector<PageState> states_;
  std::vector<uint64_t> digests_;
};

}  // namespace holdfast
