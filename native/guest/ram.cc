#include "guest/ram.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <functional>
#include <optional>
#include <string_view>

namespace holdfast {
namespace {

std::string ProcPath(pid_t pid, std::string_view rest) {
  return "/proc/" + std::to_string(pid) + "/" + std::string(rest);
}

// One line of /proc/PID/maps; empty if it is not backed by a file.
std::optional<RamMapping> ParseMapsLine(const std::string& line) {
  uint64_t start = 0, end = 0, offset = 0, inode = 0;
  unsigned major_number = 0, minor_number = 0;
  char permissions[5] = {};
  int path_at = 0;
  const int fields =
      std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n",
                  &start, &end, permissions, &offset, &major_number, &minor_number, &inode,
                  &path_at);
  if (fields != 7 || inode == 0 || path_at == 0) return std::nullopt;
  RamMapping mapping;
  mapping.host_address = start;
  mapping.size_bytes = end - start;
  mapping.file_offset = offset;
  mapping.path = line.substr(static_cast<size_t>(path_at));
  mapping.shared = permissions[3] == 's';
  mapping.device = makedev(major_number, minor_number);
  mapping.inode = inode;
  constexpr std::string_view kDeleted = " (deleted)";
  if (mapping.path.ends_with(kDeleted)) {
    mapping.deleted = true;
    mapping.path.resize(mapping.path.size() - kDeleted.size());
  }
  return mapping;
}

bool Continues(const RamMapping& left, const RamMapping& right) {
  return left.device == right.device && left.inode == right.inode &&
         left.shared == right.shared &&
         left.host_address + left.size_bytes == right.host_address &&
         left.file_offset + left.size_bytes == right.file_offset;
}

Result<std::vector<RamMapping>> ReadMappings(pid_t pid) {
  std::ifstream maps(ProcPath(pid, "maps"));
  if (!maps) return Error::FromErrno("open", ProcPath(pid, "maps"), ErrorCode::kRamMapping);
  std::vector<RamMapping> mappings;
  for (std::string line; std::getline(maps, line);) {
    auto mapping = ParseMapsLine(line);
    if (!mapping) continue;
    if (!mappings.empty() && Continues(mappings.back(), *mapping)) {
      mappings.back().size_bytes += mapping->size_bytes;
    } else {
      mappings.push_back(*std::move(mapping));
    }
  }
  return mappings;
}

bool IsFileOf(const RamMapping& mapping, int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && status.st_dev == mapping.device &&
         status.st_ino == mapping.inode;
}

// Calls `visit` with each candidate path of the mapping's file until it is content.
bool TryPaths(pid_t pid, const RamMapping& mapping,
              const std::function<bool(const std::string&)>& visit) {
  // Asked before opening: opening what lies there instead could block (a FIFO).
  const auto is_the_file = [&](const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 && status.st_dev == mapping.device &&
           status.st_ino == mapping.inode;
  };
  const std::string named = ProcPath(pid, "root") + mapping.path;
  if (!mapping.deleted && is_the_file(named) && visit(named)) return true;
  bool found = false;
  if (DIR* directory = ::opendir(ProcPath(pid, "fd").c_str())) {
    while (const dirent* entry = found ? nullptr : ::readdir(directory)) {
      const std::string path = ProcPath(pid, "fd/") + entry->d_name;
      found = is_the_file(path) && visit(path);
    }
    ::closedir(directory);
  }
  if (found) return true;
  // Named by the exact bounds of one VMA; the first of a merged mapping will do.
  char prefix[32];
  std::snprintf(prefix, sizeof prefix, "%" PRIx64 "-", mapping.host_address);
  if (DIR* directory = ::opendir(ProcPath(pid, "map_files").c_str())) {
    while (const dirent* entry = found ? nullptr : ::readdir(directory)) {
      if (!std::string_view(entry->d_name).starts_with(prefix)) continue;
      found = visit(ProcPath(pid, "map_files/") + entry->d_name);
    }
    ::closedir(directory);
  }
  return found;
}

Result<Descriptor> Open(pid_t pid, const RamMapping& mapping, int flags) {
  Descriptor file;
  int last_errno = ENOENT;
  const bool opened = TryPaths(pid, mapping, [&](const std::string& path) {
    Descriptor candidate(::open(path.c_str(), flags | O_CLOEXEC));
    if (!candidate.valid()) {
      last_errno = errno;
      return false;
    }
    if (!IsFileOf(mapping, candidate.get())) return false;
    file = std::move(candidate);
    return true;
  });
  if (opened) return file;
  errno = last_errno;
  return Error::FromErrno("open", "the file behind guest RAM (" + mapping.path + ")",
                          ErrorCode::kRamMapping);
}

// False: not a file system whose pages can be tracked.
bool ReadPageSize(pid_t pid, RamMapping& mapping) {
  auto file = Open(pid, mapping, O_PATH);
  if (!file.ok()) return false;
  struct statfs status {};
  if (::fstatfs(file.value().get(), &status) != 0) return false;
  if (status.f_type != TMPFS_MAGIC && status.f_type != HUGETLBFS_MAGIC) return false;
  mapping.page_size =
      status.f_type == HUGETLBFS_MAGIC ? static_cast<uint32_t>(status.f_bsize) : 4096;
  return true;
}

}  // namespace

Result<std::vector<RamMapping>> FindRamMappings(pid_t pid, uint64_t min_bytes) {
  auto mappings = ReadMappings(pid);
  if (!mappings.ok()) return mappings.error();
  std::vector<RamMapping> found;
  for (RamMapping& mapping : mappings.value()) {
    if (mapping.size_bytes < min_bytes || !ReadPageSize(pid, mapping)) continue;
    found.push_back(std::move(mapping));
  }
  return found;
}

Result<RamMapping> LocateRamMapping(pid_t pid, uint64_t address, uint64_t size,
                                    uint64_t file_offset) {
  auto mappings = ReadMappings(pid);
  if (!mappings.ok()) return mappings.error();
  for (RamMapping& mapping : mappings.value()) {
    if (address < mapping.host_address) continue;
    const uint64_t skipped = address - mapping.host_address;
    if (skipped >= mapping.size_bytes || mapping.size_bytes - skipped < size) continue;
    if (mapping.file_offset + skipped != file_offset) break;
    if (!mapping.shared) {
      return Error::Of(ErrorCode::kRamMapping, "guest RAM is not mapped shared: " + mapping.path);
    }
    if (!ReadPageSize(pid, mapping)) {
      return Error::Of(ErrorCode::kRamMapping,
                       "guest RAM is not on tmpfs or hugetlbfs: " + mapping.path);
    }
    return mapping;
  }
  return Error::Of(ErrorCode::kRamMapping,
                   "process " + std::to_string(pid) + " has no such mapping (any more)");
}

Result<Descriptor> OpenRamFile(pid_t pid, const RamMapping& mapping) {
  return Open(pid, mapping, O_RDONLY);
}

Result<Descriptor> OpenRamFileForWriting(pid_t pid, const RamMapping& mapping) {
  return Open(pid, mapping, O_RDWR);
}

}  // namespace holdfast
