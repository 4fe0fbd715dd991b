#include "disk/disk_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

namespace holdfast {

bool DiskDirectory::Has(const std::string& name) const {
  return ::access(At(name).c_str(), F_OK) == 0;
}

Result<std::unique_ptr<DiskFile>> DiskDirectory::Open(const std::string& name) {
  return DiskFile::Open(At(name));
}

Result<std::unique_ptr<DiskFile>> DiskDirectory::Create(const std::string& name, uint64_t bytes) {
  return DiskFile::Create(At(name), bytes);
}

Status DiskDirectory::Rename(const std::string& from, const std::string& to) {
  if (::rename(At(from).c_str(), At(to).c_str()) != 0) {
    return Error::FromErrno("rename", "replacing " + At(to));
  }
  return Sync();
}

void DiskDirectory::Remove(const std::string& name) { ::unlink(At(name).c_str()); }

Status DiskDirectory::Sync() {
  const Descriptor directory(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return Error::FromErrno("open", "syncing " + path_);
  if (::fsync(directory.get()) != 0) return Error::FromErrno("fsync", "syncing " + path_);
  return {};
}

}  // namespace holdfast
