// One disk, served: every change goes to the image and, while the VM is
// protected, as a record into the ring. Knows nothing of NBD or nbdkit, whose
// threads call it, and nothing of the control socket, whose thread does, too.
//
//   a change:  VM active? -> no flush owed? -> range locked, blocks marked
//              -> image -> room in the ring, record, published -> answer
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "disk/disk_map.h"
#include "disk/image_file.h"
#include "nbdkit/disk_control.h"
#include "nbdkit/flush_debt.h"
#include "nbdkit/log_writer.h"
#include "nbdkit/range_lock.h"

namespace holdfast {

class DiskServer {
 public:
  struct Options {
    std::string image_path;
    std::string meta_path;  // a directory: the map is in it
    std::string ring_path;
    uint64_t ring_bytes;
    bool active;  // else a standby: changes wait until Activate()
  };

  static Result<std::unique_ptr<DiskServer>> Open(const Options& options);
  DiskServer(const DiskServer&) = delete;
  DiskServer& operator=(const DiskServer&) = delete;
  ~DiskServer() = default;  // without Close(): as if it had been killed

  // Threads may be made from here on: nbdkit has forked.
  void Begin();
  // Lets changes that have begun end, and begins no other; then brings image and
  // map to stable storage and takes the ring's name away.
  Status Close();

  const ImageFile& image() const { return image_; }

  // Requests of the VM. 0, or the errno to answer; ESHUTDOWN: closed, don't
  // answer, the next server will. Ranges are within the image.
  int Read(std::span<std::byte> target, uint64_t offset);
  int Write(std::span<const std::byte> bytes, uint64_t offset, bool fua);
  int Zero(uint64_t offset, uint64_t length, bool may_trim, bool fast_only, bool fua);
  int Trim(uint64_t offset, uint64_t length, bool fua);
  int Flush();

  // Requests of the daemon.
  Result<uint64_t> StartLog();
  void StopLog();
  Result<uint64_t> RotateMap();  // blocks that are marked then
  Result<uint64_t> ClearMap();
  Status SetSyncId(const SyncId& sync_id);
  Status Activate();
  bool active() const { return active_.load(); }
  bool logging() const { return log_.logging(); }
  DiskStats stats();

 private:
  DiskServer(const Options& options, ImageFile image, Ring ring)
      : meta_path_(options.meta_path),
        ring_path_(options.ring_path),
        image_(std::move(image)),
        log_(std::move(ring)) {}

  bool WaitUntilActive();  // false: never
  // `change` alters the image: 0, an errno, or EOPNOTSUPP if it has not touched it.
  template <typename Change>
  int Mutate(uint64_t offset, uint64_t length, bool fua, const Change& change);
  int FlushNow();
  int Failed(int error);
  void MarkUnderWay();
  Status NeedActive() const;
  Status CheckJournal() const;
  Status OpenMap();

  const std::string meta_path_;
  const std::string ring_path_;
  ImageFile image_;
  RangeLock ranges_;
  std::optional<DiskMap> map_;  // while active; what a rotation must not overtake, under ranges_
  LogWriter log_;

  std::mutex state_mutex_;
  std::condition_variable state_changed_;
  std::atomic<bool> active_{false};  // changed under state_mutex_
  std::atomic<bool> closing_{false};  // likewise
  std::atomic<bool> flush_failed_{false};

  struct Counters {
    std::atomic<uint64_t> reads, read_bytes, writes, write_bytes, zeros, trims;
    std::atomic<uint64_t> flushes, flush_us, flush_us_max, flushes_early, errors;
    std::atomic<uint32_t> last_errno;
  };
  Counters counters_{};

  std::optional<FlushDebt> debt_;  // last: its thread uses all of the above
};

}  // namespace holdfast
