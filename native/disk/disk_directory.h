// Where the backup keeps what belongs to a disk beside its image: journal, aside
// and map. A test puts a directory of its own in its place.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/result.h"
#include "disk/disk_file.h"

namespace holdfast {

class DiskDirectory {
 public:
  explicit DiskDirectory(std::string path) : path_(std::move(path)) {}
  DiskDirectory(const DiskDirectory&) = delete;
  DiskDirectory& operator=(const DiskDirectory&) = delete;
  virtual ~DiskDirectory() = default;

  std::string At(const std::string& name) const { return path_ + "/" + name; }

  virtual bool Has(const std::string& name) const;
  virtual Result<std::unique_ptr<DiskFile>> Open(const std::string& name);
  // Sparse, in place of one that is there.
  virtual Result<std::unique_ptr<DiskFile>> Create(const std::string& name, uint64_t bytes);
  // In place of one that is there; durable once it has returned.
  virtual Status Rename(const std::string& from, const std::string& to);
  virtual void Remove(const std::string& name);
  // Names are as durable as the files.
  virtual Status Sync();

 private:
  const std::string path_;
};

}  // namespace holdfast
