#include "nbdkit/disk_server.h"

#include <unistd.h>

#include "base/clock.h"
#include "disk/disk_file.h"
#include "disk/journal.h"

namespace holdfast {

Result<std::unique_ptr<DiskServer>> DiskServer::Open(const Options& options) {
  auto image = ImageFile::Open(options.image_path);
  if (!image.ok()) return image.error();
  // Before anything of another server's is replaced.
  if (options.active) HF_TRY(image.value().Lock());
  auto ring = Ring::Create(options.ring_path, options.ring_bytes, image.value().bytes());
  if (!ring.ok()) return ring.error();
  std::unique_ptr<DiskServer> server(
      new DiskServer(options, std::move(image).value(), std::move(ring).value()));
  if (options.active) HF_TRY(server->Activate());
  return server;
}

void DiskServer::Begin() {
  debt_.emplace(
      log_.ring().header(), [this] { FlushNow(); }, [this] { image_.StartWriteback(); });
}

Status DiskServer::Close() {
  {
    const std::lock_guard lock(state_mutex_);
    closing_.store(true);
  }
  state_changed_.notify_all();
  log_.Stop();  // or who waits for room would not end
  ranges_.Close();
  log_.ring().Remove(ring_path_);
  if (!active()) return {};
  const int failed = FlushNow();
  Status closed;
  ranges_.Exclusively([&] {
    if (failed == 0) closed = map_->Close();
    map_.reset();
  });
  if (failed == 0) return closed;
  errno = failed;
  return Error::FromErrno("fdatasync", "the disk image at the end; its map stays open");
}

int DiskServer::Failed(int error) {
  counters_.errors.fetch_add(1);
  counters_.last_errno.store(static_cast<uint32_t>(error));
  return error;
}

bool DiskServer::WaitUntilActive() {
  if (active()) return true;
  std::unique_lock lock(state_mutex_);
  state_changed_.wait(lock, [this] { return active() || closing_.load(); });
  return active();
}

template <typename Change>
int DiskServer::Mutate(uint64_t offset, uint64_t length, bool fua, const Change& change) {
  if (!WaitUntilActive()) return ESHUTDOWN;
  debt_->WaitUntilPaid();
  {
    const auto hold = ranges_.Acquire(offset, length, [&] { map_->Mark(offset, length); });
    if (!hold) return ESHUTDOWN;
    const int failed = change();
    if (failed == EOPNOTSUPP) return failed;
    if (failed != 0) {
      // What the image has there now, nobody knows, and no record will say.
      ranges_.Exclusively([&] { map_->MarkForGood(offset, length); });
      return Failed(failed);
    }
  }
  return fua ? Flush() : 0;
}

int DiskServer::Read(std::span<std::byte> target, uint64_t offset) {
  counters_.reads.fetch_add(1, std::memory_order_relaxed);
  counters_.read_bytes.fetch_add(target.size(), std::memory_order_relaxed);
  const int failed = image_.Read(target, offset);
  return failed == 0 ? 0 : Failed(failed);
}

int DiskServer::Write(std::span<const std::byte> bytes, uint64_t offset, bool fua) {
  counters_.writes.fetch_add(1, std::memory_order_relaxed);
  counters_.write_bytes.fetch_add(bytes.size(), std::memory_order_relaxed);
  return Mutate(offset, bytes.size(), fua, [&] {
    const int failed = image_.Write(bytes, offset);
    if (failed != 0) return failed;
    // Unprotected it is left to the kernel: nobody will owe.
    if (log_.logging()) debt_->Wrote(bytes.size());
    log_.Append(RecordKind::kWrite, offset, bytes.size(), bytes);
    return 0;
  });
}

int DiskServer::Zero(uint64_t offset, uint64_t length, bool may_trim, bool fast_only, bool fua) {
  counters_.zeros.fetch_add(1, std::memory_order_relaxed);
  return Mutate(offset, length, fua, [&] {
    int failed = may_trim ? image_.Punch(offset, length) : EOPNOTSUPP;
    const bool punched = failed == 0;
    if (failed == EOPNOTSUPP) failed = image_.Zero(offset, length, fast_only);
    if (failed == 0) log_.Append(punched ? RecordKind::kTrim : RecordKind::kZero, offset, length, {});
    return failed;
  });
}

int DiskServer::Trim(uint64_t offset, uint64_t length, bool fua) {
  counters_.trims.fetch_add(1, std::memory_order_relaxed);
  const ImageFile::Range range = image_.Punchable(offset, length);
  if (range.length > 0) {
    const int failed = Mutate(range.offset, range.length, fua, [&] {
      const int refused = image_.Punch(range.offset, range.length);
      if (refused == 0) log_.Append(RecordKind::kTrim, range.offset, range.length, {});
      return refused;
    });
    if (failed != EOPNOTSUPP) return failed;
  }
  return fua ? Flush() : 0;  // a hint that could not be followed
}

int DiskServer::Flush() {
  counters_.flushes.fetch_add(1, std::memory_order_relaxed);
  if (closing_.load()) return ESHUTDOWN;
  if (!active()) return 0;  // nothing was written here
  if (flush_failed_.load()) return EIO;
  if (log_.stop_pending()) {
    counters_.flushes_early.fetch_add(1, std::memory_order_relaxed);
    debt_->Owe();
    return 0;
  }
  return FlushNow();
}

int DiskServer::FlushNow() {
  const double started_ms = MonotonicMs();
  const int failed = image_.Flush();
  const auto us = static_cast<uint64_t>((MonotonicMs() - started_ms) * 1e3);
  counters_.flush_us.fetch_add(us, std::memory_order_relaxed);
  uint64_t most = counters_.flush_us_max.load();
  while (us > most && !counters_.flush_us_max.compare_exchange_weak(most, us)) {
  }
  if (failed == 0) return 0;
  // The kernel reports a lost page once and then takes it for clean: a second
  // fdatasync would succeed, and promise what is not so.
  flush_failed_.store(true);
  ranges_.Exclusively([this] {
    if (map_) map_->SetFault();
  });
  return Failed(failed);
}

Status DiskServer::NeedActive() const {
  if (active()) return {};
  errno = EAGAIN;
  return Error::FromErrno("", "the disk server is a standby");
}

Result<uint64_t> DiskServer::StartLog() {
  HF_TRY(NeedActive());
  return log_.Start();
}

void DiskServer::StopLog() {
  if (logging()) log_.Stop();
}

void DiskServer::MarkUnderWay() {
  ranges_.ForEach([this](uint64_t offset, uint64_t length, bool) { map_->Mark(offset, length); });
}

Result<uint64_t> DiskServer::RotateMap() {
  HF_TRY(NeedActive());
  // What is under way may not be in the log yet, so that its mark must be as
  // young as its record will be.
  ranges_.Exclusively([this] {
    map_->Rotate();
    MarkUnderWay();
  });
  // The head that the daemon reads after the answer is past every record whose
  // mark is in the older window only.
  log_.Settle();
  return map_->MarkedBlocks();
}

Result<uint64_t> DiskServer::ClearMap() {
  HF_TRY(NeedActive());
  ranges_.Exclusively([this] {
    map_->Clear();
    MarkUnderWay();
  });
  log_.Settle();
  return map_->MarkedBlocks();
}

Status DiskServer::SetSyncId(const SyncId& sync_id) {
  HF_TRY(NeedActive());
  return map_->SetSyncId(sync_id);
}

// A backup that was here has acknowledged what the image lacks: a VM that begins
// without it would begin in the past.
Status DiskServer::CheckJournal() const {
  const std::string path = meta_path_ + "/journal";
  if (::access(path.c_str(), F_OK) != 0 && errno == ENOENT) return {};
  auto file = DiskFile::Open(path);
  if (!file.ok()) return file.error();
  auto journal = Journal::Open(std::move(file).value(), image_.bytes());
  if (!journal.ok()) return journal.error();
  const JournalSlot latest = journal.value()->SoundSlots().front();
  const bool lacks = latest.state == JournalState::kMerging ||
                     (latest.state == JournalState::kReplica && latest.applied_lsn < latest.committed_lsn);
  if (!lacks) return {};
  Error error = Error::Of(ErrorCode::kDisk,
                          path + ": the journal beside this image has committed writes that are not in "
                                 "it; start `holdfast backup` on this host once with its old settings, "
                                 "it applies them");
  error.sys_errno = EBUSY;
  return error;
}

Status DiskServer::OpenMap() {
  auto map = DiskMap::Open(meta_path_ + "/map", image_.bytes(), DiskMap::Mode::kActive, image_.fd());
  if (!map.ok()) return map.error();
  map_.emplace(std::move(map).value());
  return {};
}

Status DiskServer::Activate() {
  if (active()) return {};
  HF_TRY(image_.Lock());
  Status opened = CheckJournal();
  if (opened.ok()) opened = OpenMap();
  if (!opened.ok()) {
    image_.Unlock();  // for the one that can put it right
    return opened;
  }
  {
    const std::lock_guard lock(state_mutex_);
    active_.store(true);
  }
  state_changed_.notify_all();
  return {};
}

DiskStats DiskServer::stats() {
  const LogWriter::Stats log = log_.stats();
  const bool active = this->active();
  DiskStats stats;
  stats.image_bytes = image_.bytes();
  stats.reads = counters_.reads.load();
  stats.read_bytes = counters_.read_bytes.load();
  stats.writes = counters_.writes.load();
  stats.write_bytes = counters_.write_bytes.load();
  stats.zeros = counters_.zeros.load();
  stats.trims = counters_.trims.load();
  stats.flushes = counters_.flushes.load();
  stats.flush_us = counters_.flush_us.load();
  stats.flush_us_max = counters_.flush_us_max.load();
  stats.stalls = log.stalls;
  stats.stalled_us = log.stalled_us;
  stats.logged_bytes = log.logged_bytes;
  stats.ring_bytes = log_.ring().ring_bytes();
  stats.ring_used_bytes = log.used_bytes;
  stats.ring_used_bytes_peak = log.used_bytes_peak;
  stats.marked_blocks = active ? map_->MarkedBlocks() : 0;
  stats.errors = counters_.errors.load();
  stats.last_errno = counters_.last_errno.load();
  if (logging()) stats.flags |= kDiskLogging;
  if (active) stats.flags |= kDiskActive;
  if (flush_failed_.load()) stats.flags |= kDiskFault;
  if (log.stalled) stats.flags |= kDiskStalled;
  stats.flushes_early = counters_.flushes_early.load();
  return stats;
}

}  // namespace holdfast
