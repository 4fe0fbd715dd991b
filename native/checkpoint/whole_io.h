// Reads and writes that are done completely or fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"

namespace holdfast {

// kChecksum where the file ends too early.
Status ReadAll(int fd, std::byte* target, size_t bytes, uint64_t offset, const std::string& path);
Status WriteAll(int fd, const std::byte* source, size_t bytes, uint64_t offset,
                const std::string& path);

}  // namespace holdfast
