// Finds the files that back a process's memory, and opens them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

// A file-backed mapping, merged over adjacent VMAs that continue each other in
// address and in file (userfaultfd, madvise and mprotect split them).
struct RamMapping {
  uint64_t host_address = 0;
  uint64_t size_bytes = 0;
  uint64_t file_offset = 0;
  std::string path;
  bool deleted = false;
  bool shared = false;
  uint32_t page_size = 4096;
  // Identity of the file, from /proc/PID/maps.
  dev_t device = 0;
  ino_t inode = 0;
};

// Where guest RAM is, in a process and in its file.
struct RamPlace {
  pid_t pid = 0;
  uint64_t host_address = 0;
  uint64_t ram_bytes = 0;
  uint64_t file_offset = 0;
};

// Mappings of tmpfs files, hugetlbfs files and memfds, at least `min_bytes` long.
Result<std::vector<RamMapping>> FindRamMappings(pid_t pid, uint64_t min_bytes);

// The mapping of `pid` that covers [address, address + size) at `file_offset`
// now; kRamMapping if it is not what was described.
Result<RamMapping> LocateRamMapping(pid_t pid, uint64_t address, uint64_t size,
                                    uint64_t file_offset);

// Opens the mapping's file for reading, also if it was unlinked.
Result<Descriptor> OpenRamFile(pid_t pid, const RamMapping& mapping);
Result<Descriptor> OpenRamFileForWriting(pid_t pid, const RamMapping& mapping);

}  // namespace holdfast
