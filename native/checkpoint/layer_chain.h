// Guest RAM as a checkpoint has it: a full layer and the increments over it.
//
//   page ─► the topmost layer that names it ─► its file, checked against its digest
//
// No byte leaves here unchecked. A layer below may hold anything where one above
// covers it: so a merge may be under way there (MergeInto).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "checkpoint/page_table.h"

namespace holdfast {

struct LayerFiles {
  std::string ram;
  std::string index;
  uint64_t trailer = 0;  // of the index, as the manifest has it
};

class LayerChain {
 public:
  // Bottom first. kChecksum if an index is damaged or they do not go together.
  static Result<LayerChain> Open(const std::vector<LayerFiles>& layers);

  uint32_t page_size() const { return page_size_; }
  uint64_t pages() const { return layer_of_.size(); }

  // A stretch of pages that lie together in one layer, or of zero pages.
  struct Stretch {
    uint64_t first_page = 0;
    uint64_t pages = 0;
    bool zero = false;
  };
  // The one that begins with `page`, of at most `pages_max` pages.
  Stretch At(uint64_t page, uint64_t pages_max) const;

  // A stretch with content: its first page that is damaged, or pages() if none is.
  Result<uint64_t> Read(const Stretch& stretch, std::byte* target) const;

  // Of a page with content: its layer, and that layer's file.
  size_t LayerOf(uint64_t page) const { return layer_of_[page]; }
  int file(size_t layer) const { return layers_[layer].file.get(); }

  struct Damage {
    size_t layer = 0;
    uint64_t page = 0;
  };
  // The same of pages with content that somebody else has read.
  Status Check(uint64_t first_page, std::span<const std::byte> content) const;

  // Reads all; the first `limit` pages that are damaged.
  Result<std::vector<Damage>> Verify(size_t limit, const CancelSignal& cancel) const;

  // Creates a file that is guest RAM, sparse. kChecksum, and no file, if a page is damaged.
  Status Assemble(const std::string& path, const CancelSignal& cancel) const;

  // "PATH: page 12 (byte 49152) is damaged".
  Error DamageAt(uint64_t page) const;

 private:
  static constexpr uint16_t kZeroLayer = 0xffff;

  struct Layer {
    std::string path;
    Descriptor file;
  };

  LayerChain() = default;
  uint64_t FirstDamaged(uint64_t first_page, std::span<const std::byte> content) const;

  uint32_t page_size_ = 0;
  std::vector<Layer> layers_;
  std::vector<uint16_t> layer_of_;
  std::vector<uint64_t> digests_;
};

struct Merged {
  uint64_t merged_pages = 0;   // written to the lower one
  uint64_t content_pages = 0;  // that it has now
  uint64_t trailer = 0;        // of its new index
};

// Writes the upper layer's pages into the lower one's file, in place, and what it
// is then to `index_path`; all of it is on stable storage when this returns. It
// may be done again after it was cut off anywhere: the upper layer and the lower
// one's old index stay as they are, and with them both read as before.
Result<Merged> MergeInto(const LayerFiles& lower, const LayerFiles& upper,
                         const std::string& index_path, const CancelSignal& cancel);

}  // namespace holdfast
