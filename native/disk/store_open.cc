// Opening the disks of a store: what is there is recognised or refused, what is
// missing is made, and the journals' last epoch is recovered.

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>

#include "disk/store.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr char kJournalName[] = "journal";
constexpr char kNewJournalName[] = "journal.new";
constexpr char kMapName[] = "map";
constexpr uint64_t kPageBytes = 4096;
// At both ends of a block device: partition tables and file systems show there.
constexpr uint64_t kProbedBytes = uint64_t{1} << 20;

uint64_t CircleBytes(const DiskStore::Disk& options) {
  return options.journal_bytes / kPageBytes * kPageBytes;
}

bool AllZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// Nobody's data: a file without any, a block device whose ends are zeros.
Result<bool> IsEmpty(const ImageFile& image, const std::string& path) {
  if (!image.is_block_device()) {
    auto extent = image.ExtentAt(0);
    if (!extent.ok()) return extent.error();
    return extent.value().hole && extent.value().end == image.bytes();
  }
  std::vector<std::byte> bytes(std::min(kProbedBytes, image.bytes()));
  for (const uint64_t offset : {uint64_t{0}, image.bytes() - bytes.size()}) {
    errno = image.Read(bytes, offset);
    if (errno != 0) return Error::FromErrno("pread", "reading " + path);
    if (!AllZero(bytes)) return false;
  }
  return true;
}

// True: there was none.
Result<bool> CreateImage(const DiskStore::Disk& options) {
  struct stat about {};
  const bool missing = ::stat(options.image_path.c_str(), &about) != 0 && errno == ENOENT;
  const bool empty = !missing && S_ISREG(about.st_mode) && about.st_size == 0;
  if (!missing && !empty) return false;
  auto created = DiskFile::Create(options.image_path, options.image_bytes);
  if (!created.ok()) return created.error();
  HF_TRY(created.value()->Sync());
  return true;
}

Status ForgetSyncId(DiskMap& map) {
  return map.sync_id() == SyncId{} ? Status{} : map.SetSyncId({});
}

Error InUse(Error error, const std::string& id) {
  if (error.sys_errno != EBUSY) return error;
  error.code = ErrorCode::kDisk;
  error.message = "disk " + id + ": " + error.message + ". End it first";
  return error;
}

}  // namespace

Status DiskStore::CheckOptions() const {
  for (const Disk& disk : disks_) {
    if (disk.image_bytes == 0) return Error::Of(ErrorCode::kLimit, "disk " + disk.id + " has no size");
    if (disk.journal_bytes < kJournalBytesMin) {
      return Error::Of(ErrorCode::kLimit,
                       Text("disk %s: a journal of %" PRIu64 " bytes is too small, at least %" PRIu64
                            " are needed",
                            disk.id.c_str(), disk.journal_bytes, kJournalBytesMin));
    }
  }
  if (disks_.empty()) return Error::Of(ErrorCode::kLimit, "a store without disks");
  return {};
}

Result<std::unique_ptr<DiskStore::OpenDisk>> DiskStore::OpenOne(const Disk& options) const {
  auto created = CreateImage(options);
  if (!created.ok()) return created.error();
  auto locked = ImageFile::Open(options.image_path);
  if (!locked.ok()) return locked.error();
  const ImageFile& image = locked.value();
  if (image.bytes() != options.image_bytes) {
    return Error::Of(ErrorCode::kDisk,
                     Text("disk %s: %s has %" PRIu64 " bytes, the primary's %" PRIu64
                          ". Give it an image of that size, or remove it: a sparse one is made then",
                          options.id.c_str(), options.image_path.c_str(), image.bytes(),
                          options.image_bytes));
  }
  const Status lock = locked.value().Lock();
  if (!lock.ok()) return InUse(lock.error(), options.id);
  auto empty = IsEmpty(image, options.image_path);
  if (!empty.ok()) return empty.error();
  DiskDirectory directory(options.meta_dir);
  const bool known = directory.Has(kMapName) || directory.Has(kJournalName);
  if (!empty.value() && !known && !options.adopt) {
    return Error::Of(ErrorCode::kDiskForeign,
                     "disk " + options.id + ": " + options.image_path +
                         " has content that is not Holdfast's, and would be overwritten. Move it "
                         "away, or say that it is to be adopted");
  }
  auto writable = DiskFile::Open(options.image_path);
  if (!writable.ok()) return writable.error();
  auto map = DiskMap::Open(directory.At(kMapName), options.image_bytes, DiskMap::Mode::kReplica,
                           writable.value()->fd());
  if (!map.ok()) return InUse(map.error(), options.id);
  // What is in `meta` is of an image that somebody removed. Of one that is only
  // empty the journal may still say what it is.
  if (created.value()) directory.Remove(kJournalName);
  if (empty.value() && !image.is_block_device()) HF_TRY(ForgetSyncId(map.value()));
  auto disk = std::make_unique<OpenDisk>(options.meta_dir, std::move(locked).value(),
                                         std::move(writable).value(), std::move(map).value());
  disk->fresh = empty.value() && !image.is_block_device();  // of one only the ends were looked at
  return disk;
}

Result<std::unique_ptr<Journal>> DiskStore::OpenJournal(const Disk& options, OpenDisk& disk) const {
  disk.directory.Remove(kNewJournalName);
  if (!disk.directory.Has(kJournalName)) {
    // Somebody removed it, with what was committed and is neither in the image nor
    // marked any more. A VM that has run here since has a state of its own.
    if (disk.map->role_found() == MapRole::kReplica) HF_TRY(ForgetSyncId(*disk.map));
    auto file = disk.directory.Create(kNewJournalName, Journal::FileBytes(CircleBytes(options)));
    if (!file.ok()) return file.error();
    HF_TRY(file.value()->Reserve());
    HF_TRY(Journal::Format(*file.value(), options.image_bytes, {.round = 1}));
    HF_TRY(disk.directory.Rename(kNewJournalName, kJournalName));
  }
  auto file = disk.directory.Open(kJournalName);
  if (!file.ok()) return file.error();
  return Journal::Open(std::move(file).value(), options.image_bytes);
}

Status DiskStore::OpenSet() {
  std::vector<std::unique_ptr<ReplicaDisk>> replicas;
  for (size_t i = 0; i < disks_.size(); i++) {
    auto journal = OpenJournal(disks_[i], *open_[i]);
    if (!journal.ok()) return journal.error();
    replicas.push_back(std::make_unique<ReplicaDisk>(open_[i]->directory, *open_[i]->image,
                                                     std::move(journal).value()));
  }
  set_.emplace(std::move(replicas));
  return set_->Recover(cancelled_);
}

// Recovered and in step: nothing but the last slot is needed of the old file.
Result<bool> DiskStore::ResizeJournals() {
  bool resized = false;
  for (size_t i = 0; i < disks_.size(); i++) {
    const ReplicaDisk& disk = (*set_)[i];
    if (disk.journal().circle_bytes() == CircleBytes(disks_[i])) continue;
    DiskDirectory& directory = open_[i]->directory;
    auto file = directory.Create(kNewJournalName, Journal::FileBytes(CircleBytes(disks_[i])));
    if (!file.ok()) return file.error();
    HF_TRY(file.value()->Reserve());
    HF_TRY(Journal::Format(*file.value(), disks_[i].image_bytes, disk.stable()));
    HF_TRY(directory.Rename(kNewJournalName, kJournalName));
    resized = true;
  }
  return resized;
}

// A synchronisation's first commit was durable, but its id not yet in the map.
Status DiskStore::AdoptSyncIds() {
  for (size_t i = 0; i < disks_.size(); i++) {
    const ReplicaDisk& disk = (*set_)[i];
    DiskMap& map = *open_[i]->map;
    if (!map.trusted() || map.role_found() != MapRole::kReplica || !disk.has_checkpoint() || map.sync_id() == disk.stable().sync_id) continue;
    HF_TRY(map.SetSyncId(disk.stable().sync_id));
  }
  return {};
}

Result<std::vector<DiskStore::Opened>> DiskStore::Open() {
  Lock lock(mutex_);
  if (HasRetiredLocked()) {
    return Error::Of(ErrorCode::kDisk, "the disks have become a running VM's");
  }
  if (state_ == State::kOpen) {
    if (!journal_fault_) {
      RetryLocked();
      HF_TRY(AwaitLocked(
          lock,
          [this] {
            return std::all_of(set_->begin(), set_->end(),
                               [](const auto& disk) { return disk->AllApplied(); });
          },
          [this] { return state_ != State::kOpen || cancelled_; }));
      return Describe({});
    }
    if (checkpoint_ != nullptr || streaming_ != nullptr) return *journal_fault_;
    lock.unlock();
    StopThreads();
    lock.lock();
    Release();
  }
  HF_TRY(CheckOptions());
  const auto open = [this]() -> Result<std::vector<bool>> {
    for (const Disk& disk : disks_) {
      auto opened = OpenOne(disk);
      if (!opened.ok()) return opened.error();
      open_.push_back(std::move(opened).value());
    }
    HF_TRY(OpenSet());
    std::vector<bool> recovered;
    for (const auto& disk : *set_) recovered.push_back(disk->recovered());
    auto resized = ResizeJournals();
    if (!resized.ok()) return resized.error();
    if (resized.value()) HF_TRY(OpenSet());
    HF_TRY(AdoptSyncIds());
    return recovered;
  };
  auto recovered = open();
  if (!recovered.ok()) {
    Release();
    return recovered.error();
  }
  state_ = State::kOpen;
  Start();
  return Describe(recovered.value());
}

std::vector<DiskStore::Opened> DiskStore::Describe(const std::vector<bool>& recovered) {
  std::vector<Opened> opened;
  for (size_t i = 0; i < disks_.size(); i++) {
    const OpenDisk& disk = *open_[i];
    opened.push_back({.id = disks_[i].id,
                      .fresh = disk.fresh,
                      .sync_id = disk.map->sync_id(),
                      .trusted = disk.map->trusted(),
                      .marked_bytes = std::min(disk.map->MarkedBlocks() * kMapBlockBytes,
                                               disks_[i].image_bytes),
                      .committed_epoch = (*set_)[i].epoch(),
                      .recovered = i < recovered.size() && recovered[i]});
  }
  return opened;
}

// Under mutex_, the threads joined.
void DiskStore::Release() {
  set_.reset();
  open_.clear();
  journal_fault_.reset();
  applying_.clear();
  state_ = State::kClosed;
}

}  // namespace holdfast
