// Disks that lose their power: files whose writes are remembered, sector by
// sector, until they are synced. After the loss each sector is one of what it was
// at the last sync and what was written since, at random, as a drive's cache and
// the kernel's leave it.
#pragma once

#include <sys/mman.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "disk/disk_directory.h"
#include "disk/disk_file.h"
#include "test/lab.h"

namespace holdfast::test {

// Shared by the files of a host: goes out after so many operations.
struct Power {
  uint64_t operations_left = ~uint64_t{0};
  bool on() const { return operations_left > 0; }
  bool Use() {
    if (operations_left == 0) return false;
    operations_left--;
    return operations_left > 0;
  }
};

// What is left of a file while no process has it open.
struct Medium {
  static constexpr uint64_t kSectorBytes = 512;

  explicit Medium(uint64_t bytes)
      : cached(::memfd_create("medium", MFD_CLOEXEC)), stable(bytes) {
    CHECK(::ftruncate(cached.get(), static_cast<off_t>(bytes)) == 0);
  }

  void Remember(uint64_t offset, std::span<const std::byte> bytes) {
    for (uint64_t done = 0; done < bytes.size();) {
      const uint64_t at = offset + done;
      const uint64_t sector = at / kSectorBytes;
      const uint64_t begin = at % kSectorBytes;
      const uint64_t count = std::min(kSectorBytes - begin, bytes.size() - done);
      auto& versions = unsynced[sector];
      const uint64_t sector_begin = sector * kSectorBytes;
      const uint64_t sector_end = std::min<uint64_t>(sector_begin + kSectorBytes, stable.size());
      // As the cache has it, which after a failed sync is not what the medium has.
      Bytes content(sector_end - sector_begin);
      CHECK(::pread(cached.get(), content.data(), content.size(), static_cast<off_t>(sector_begin)) ==
            static_cast<ssize_t>(content.size()));
      std::memcpy(content.data() + begin, bytes.data() + done, count);
      versions.push_back(std::move(content));
      done += count;
    }
  }

  void Put(uint64_t sector, const Bytes& content) {
    std::memcpy(stable.data() + sector * kSectorBytes, content.data(), content.size());
  }

  void Sync() {
    for (const auto& [sector, versions] : unsynced) Put(sector, versions.back());
    unsynced.clear();
  }

  // What was written since the last sync is seen, and never reaches the medium.
  void FailToSync() { unsynced.clear(); }

  void LosePower(Random& random) {
    for (const auto& [sector, versions] : unsynced) {
      const uint64_t version = random() % (versions.size() + 1);
      if (version > 0) Put(sector, versions[version - 1]);
    }
    unsynced.clear();
    CHECK(::pwrite(cached.get(), stable.data(), stable.size(), 0) ==
          static_cast<ssize_t>(stable.size()));
  }

  Bytes Content() const {
    Bytes content(stable.size());
    CHECK(::pread(cached.get(), content.data(), content.size(), 0) ==
          static_cast<ssize_t>(content.size()));
    return content;
  }

  Descriptor cached;  // what processes see
  Bytes stable;
  std::map<uint64_t, std::vector<Bytes>> unsynced;
};

class PoweredFile : public DiskFile {
 public:
  PoweredFile(const std::string& name, std::shared_ptr<Medium> medium, Power& power)
      : DiskFile(name, Descriptor(::dup(medium->cached.get())), medium->stable.size(), false),
        medium_(std::move(medium)),
        power_(power) {}

  Status Write(uint64_t offset, std::span<const std::byte> bytes) override {
    // The loss may come in the middle of a write.
    const bool whole = power_.Use();
    if (!whole && bytes.size() > 1) bytes = bytes.first(bytes.size() / 2);
    if (!whole && !last_breath_) return Out();
    last_breath_ = whole;
    medium_->Remember(offset, bytes);
    HF_TRY(DiskFile::Write(offset, bytes));
    return whole ? Status{} : Out();
  }
  Status Zero(uint64_t offset, uint64_t bytes, bool) override {
    return Write(offset, Bytes(bytes));
  }
  Status CopyFrom(const DiskFile& from, uint64_t from_offset, uint64_t offset,
                  uint64_t bytes) override {
    Bytes content(bytes);
    HF_TRY(from.Read(from_offset, content));
    return Write(offset, content);
  }
  Status Sync() override {
    if (!power_.Use()) return Out();
    medium_->Sync();
    return {};
  }

 private:
  static Error Out() { return Error::Of(ErrorCode::kSyscall, "no power"); }

  const std::shared_ptr<Medium> medium_;
  Power& power_;
  bool last_breath_ = true;
};

// Names are as durable as the call that made them.
class PoweredDirectory : public DiskDirectory {
 public:
  explicit PoweredDirectory(Power& power) : DiskDirectory("sim"), power_(power) {}

  bool Has(const std::string& name) const override { return media_.contains(name); }
  Result<std::unique_ptr<DiskFile>> Open(const std::string& name) override {
    const auto found = media_.find(name);
    if (found == media_.end()) {
      errno = ENOENT;
      return Error::FromErrno("open", "opening " + name);
    }
    return std::unique_ptr<DiskFile>(new PoweredFile(name, found->second, power_));
  }
  Result<std::unique_ptr<DiskFile>> Create(const std::string& name, uint64_t bytes) override {
    if (!power_.Use()) return Error::Of(ErrorCode::kSyscall, "no power");
    media_[name] = std::make_shared<Medium>(bytes);
    return Open(name);
  }
  Status Rename(const std::string& from, const std::string& to) override {
    if (!power_.Use()) return Error::Of(ErrorCode::kSyscall, "no power");
    media_[to] = media_[from];
    media_.erase(from);
    return {};
  }
  void Remove(const std::string& name) override {
    if (power_.Use()) media_.erase(name);
  }
  Status Sync() override {
    return power_.Use() ? Status{} : Error::Of(ErrorCode::kSyscall, "no power");
  }

  std::map<std::string, std::shared_ptr<Medium>> media_;

 private:
  Power& power_;
};

}  // namespace holdfast::test
