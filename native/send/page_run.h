// What a sender is told: a file-backed region, and runs of pages within it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace holdfast {

// `first_page` is the page's number in guest RAM; `source_page` its number in
// the source (guest RAM itself, or the staging pool).
struct PageRun {
  uint64_t first_page = 0;
  uint64_t source_page = 0;
  uint32_t pages = 0;
};

// Bytes reachable both by descriptor (sendfile, splice) and by address (copy,
// digest). `base` is the mapping of the file at offset `file_offset`.
//
// `pinnable`: writable memory of ours that may be registered with a ring, because
// its pages stay the same ones (no remapping, no punched holes) as long as the
// connection lasts. Guest RAM is not ours to pin.
struct PageSource {
  int fd = -1;
  uint64_t file_offset = 0;
  const std::byte* base = nullptr;
  size_t size = 0;
  bool pinnable = false;
};

}  // namespace holdfast
