// Whole files, hashed and compared: for tests and verification. Both read, and
// never map, so that holes stay holes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"

namespace holdfast {

// xxh3-64 of the first `bytes` bytes.
Result<uint64_t> HashFile(const std::string& path, uint64_t bytes, const CancelSignal& cancel);

// Numbers of the first `limit` pages in which the files differ.
Result<std::vector<uint64_t>> CompareFiles(const std::string& left, const std::string& right,
                                           uint64_t bytes, uint32_t page_size, uint64_t limit,
                                           const CancelSignal& cancel);

}  // namespace holdfast
