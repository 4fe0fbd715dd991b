// The backup's end of the disk stream: frames into the disks of a session.
//
//   socket ─ splice ─► journal (log)          no copy but the one into the page cache
//          ─ splice ─► image, or ─► aside     (base)
//
// One thread, from HELLO_OK on. What it answers is small and rare; the peer has
// its listener there.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "disk/disk_session.h"
#include "receive/stream_reader.h"
#include "wire/disk_decoder.h"

namespace holdfast {

class DiskReceiver {
 public:
  struct Callbacks {
    // All of it, or an error: a frame for the primary.
    std::function<Status(std::span<const std::byte> frame)> send;
    // The journals hold everything up to this epoch's boundary.
    std::function<Status(uint64_t epoch)> reached;
    std::function<void()> synced;
  };

  // `cut` ends it, as it ends the reader.
  DiskReceiver(DiskSession& disks, StreamReader& reader, std::shared_ptr<std::atomic<bool>> cut,
               Callbacks callbacks);

  // Until the stream ends; why it did.
  Error Run();

 private:
  Status Receive();
  Status Greet();
  Status Handle(const FrameHeader& header);
  Status OnBase(const FrameHeader& header);
  Status OnLog(const FrameHeader& header);
  Status TellReceived(bool all);
  Status StillHere();
  Status AwaitFrame();
  Status Send(FrameType type, std::span<const std::byte> table,
              std::span<const std::byte> payload);

  DiskSession& disks_;
  StreamReader& reader_;
  const std::shared_ptr<std::atomic<bool>> cut_;
  const Callbacks callbacks_;
  DiskDecoder decoder_;
  std::vector<std::byte> head_;
  std::vector<std::byte> data_;  // of a base piece that goes aside
  std::vector<std::byte> frame_;
  std::vector<uint64_t> received_;  // by disk: up to this LSN
  std::vector<uint64_t> told_;      // by the last DISK_RECEIVED
  uint64_t untold_bytes_ = 0;
  bool withheld_ = false;  // something was received of which the primary is not told yet
  std::vector<double> gave_ms_;  // by disk: when it was told last
  double told_ms_ = 0;
};

}  // namespace holdfast
