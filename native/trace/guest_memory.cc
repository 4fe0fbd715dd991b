#include "trace/guest_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace holdfast {

bool GuestMemory::Read(uint64_t physical, void* into, size_t size) const {
  for (const PhysicalRange& range : ranges_) {
    if (physical < range.start || physical - range.start >= range.size) continue;
    const uint64_t within = physical - range.start;
    if (size > range.size - within) return false;
    ssize_t got = 0;
    do {
      got = ::pread(file_.get(), into, size, static_cast<off_t>(range.file_offset + within));
    } while (got < 0 && errno == EINTR);
    return got >= 0 && static_cast<size_t>(got) == size;
  }
  return false;
}

std::string GuestMemory::Text(uint64_t physical, size_t size) const {
  std::string text(size, '\0');
  if (!Read(physical, text.data(), size)) return {};
  text.resize(std::min(text.find('\0'), std::min(text.find('\n'), size)));
  return text;
}

uint64_t GuestMemory::end() const {
  uint64_t end = 0;
  for (const PhysicalRange& range : ranges_) end = std::max(end, range.start + range.size);
  return end;
}

}  // namespace holdfast
