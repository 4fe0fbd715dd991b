// The file that a staging pool lies in, on huge pages where the kernel has any.
//
//   tmpfs, huge=always (a mount of our own, attached nowhere) ─► memfd
//
// Huge pages don't speed the copy up: it writes in order, and so misses the TLB
// once a page at most. They halve the time to populate the pool, and a sender
// that passes pages by reference passes 512 at a time: 20 MB by splice cost
// 0.62 ms of CPU instead of 0.92. A hugetlbfs gained nothing beyond that, its
// files can be neither spliced nor sent by sendfile, and its pages are the
// operator's, who reserved them for guests.
#pragma once

#include <cstdint>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

enum class StagingPages {
  kAuto,   // huge where possible
  kHuge,   // or an error, if a file that prefers huge pages cannot be had
  kSmall,
};

struct StagingFile {
  Descriptor file;
  bool huge = false;  // preferred: chunk by chunk the kernel takes small ones when it has no others
  uint64_t bytes = 0;  // at least what was asked for
};

Result<StagingFile> OpenStagingFile(uint64_t bytes, StagingPages pages);

}  // namespace holdfast
