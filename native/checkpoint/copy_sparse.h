// Copies a disk image: by reference where the file system can share its blocks,
// else its data only, inside the kernel, and holes stay holes.
#pragma once

#include <cstdint>
#include <string>

#include "base/cancel.h"
#include "base/result.h"

namespace holdfast {

struct CopiedFile {
  uint64_t bytes = 0;       // length
  uint64_t data_bytes = 0;  // copied; 0 where blocks are shared
  bool shared = false;
};

// Creates `to`, on stable storage when this returns. Nobody may write to `from`.
Result<CopiedFile> CopySparse(const std::string& from, const std::string& to,
                              const CancelSignal& cancel);

}  // namespace holdfast
