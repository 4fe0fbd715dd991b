// The backup's end of the disk stream, as small as it can be: keeps each disk in
// memory, replays base and log in the order in which they come, and checks what
// the protocol promises on the way.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/descriptor.h"
#include "disk/record.h"
#include "test/lab.h"
#include "wire/disk_decoder.h"
#include "wire/run_table.h"

namespace holdfast::test {

class DiskPeer {
 public:
  struct Disk {
    std::string id;
    Bytes image;
    SyncId sync_id{};
    bool trusted = false;
    std::vector<WireRun> marks{};  // runs of blocks
  };
  struct Options {
    std::vector<Disk> disks;
    uint64_t frames_max = ~uint64_t{0};  // of the primary's, after HELLO; then it hangs up
    bool silent = false;                 // says nothing of what it received, until Speak()
    std::string error{};                 // what it refuses the frames_max-th frame with
    uint64_t link = 1;                   // that it expects
  };

  DiskPeer(Descriptor socket, Options options);
  ~DiskPeer();

  // Waits until that boundary has come; the disks as they were at it.
  std::vector<Bytes> AwaitBoundary(uint64_t epoch);
  bool Reached(uint64_t epoch);
  void AwaitLog(uint64_t bytes);  // over all disks
  void Speak();
  // Ends it; the disks, as of the last boundary or the base.
  std::vector<Disk> Stop();

  uint64_t frames();
  uint64_t base_bytes();
  uint64_t hole_bytes();
  uint64_t records();
  std::vector<DiskPlan> plans();

 private:
  struct Record {
    RecordHeader header;
    Bytes data;
    uint64_t end;
  };
  struct Log {
    uint64_t lsn = 0;             // of what is pending
    Bytes pending;                // less than a record
    std::vector<Record> waiting;  // for the boundary
  };

  void Run();
  bool Serve();
  bool ReadAll(std::span<std::byte> to);
  void Send(FrameType type, std::span<const std::byte> table, std::span<const std::byte> payload);
  void Greet();
  void OnBase(const FrameHeader& header, std::span<const std::byte> payload);
  void OnLog(const FrameHeader& header, std::span<const std::byte> payload);
  void OnBoundary(const FrameHeader& header, std::span<const std::byte> payload);
  void Apply(uint32_t disk, const Record& record);
  void TellReceived();

  Descriptor socket_;
  Options options_;
  DiskDecoder decoder_;
  std::vector<Log> logs_;

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t frames_ = 0;
  uint64_t base_bytes_ = 0;
  uint64_t hole_bytes_ = 0;
  uint64_t log_bytes_ = 0;
  uint64_t records_ = 0;
  uint64_t epoch_ = 0;
  std::vector<Bytes> at_boundary_;
  std::vector<DiskPlan> plans_;

  std::thread thread_;  // last: uses all of the above
};

}  // namespace holdfast::test
