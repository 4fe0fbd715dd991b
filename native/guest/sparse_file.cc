#include "guest/sparse_file.h"

#include <unistd.h>

#include <algorithm>

#include "guest/tracker.h"

namespace holdfast {

Result<uint64_t> FirstHeldPage(const SparseFile& file, uint64_t first, uint64_t end) {
  const off_t data =
      ::lseek(file.fd, static_cast<off_t>(file.offset + first * file.page_size), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return end;  // holes to the end of the file
  if (data < 0) return Error::FromErrno("lseek", "SEEK_DATA on guest RAM");
  return std::min((static_cast<uint64_t>(data) - file.offset) / file.page_size, end);
}

Status AppendHeldPages(const SparseFile& file, uint64_t first, uint64_t end,
                       std::vector<PageRun>& runs) {
  while (first < end) {
    const auto held = FirstHeldPage(file, first, end);
    if (!held.ok()) return held.error();
    if (held.value() == end) break;
    const off_t hole = ::lseek(
        file.fd, static_cast<off_t>(file.offset + held.value() * file.page_size), SEEK_HOLE);
    if (hole < 0) return Error::FromErrno("lseek", "SEEK_HOLE on guest RAM");
    const uint64_t hole_bytes = static_cast<uint64_t>(hole) - file.offset;
    first = std::min((hole_bytes + file.page_size - 1) / file.page_size, end);
    AppendRun(runs, {held.value(), held.value(), static_cast<uint32_t>(first - held.value())});
  }
  return {};
}

}  // namespace holdfast
