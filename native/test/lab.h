// What the tests of the bulk connection share: a guest's RAM, a receiver whose
// events are recorded, and a proxy that cuts, slows and changes the stream.
#pragma once

#include <algorithm>
#include <array>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "receive/receiver.h"
#include "send/epoch_writer.h"
#include "test/check.h"

namespace holdfast::test {

using Bytes = std::vector<std::byte>;
using Random = std::mt19937_64;

constexpr int kDeadlineMs = 20'000;

Bytes RandomBytes(Random& random, size_t count);
// As ==, which under a sanitizer takes each byte apart.
bool Same(const Bytes& a, const Bytes& b);
int OpenDescriptors();

// A directory of the test's own on tmpfs, removed at the end. When a test fails
// it is `run` that removes it, and what is mounted in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Guest RAM in a memfd, with the pages that were written since the last take.
class GuestRam {
 public:
  // `file_flags`: of the memfd, such as MFD_HUGETLB.
  GuestRam(uint64_t pages, uint32_t page_size, unsigned file_flags = 0);
  // Fills some pages at random, some of them with zeros.
  void Scribble(Random& random, uint64_t pages);
  std::vector<PageRun> TakeDirty();
  std::vector<PageRun> All() const;
  PageSource source() const { return {file_.get(), 0, map_.data(), map_.size()}; }
  std::byte* page(uint64_t index) const { return map_.data() + index * page_size_; }
  Bytes Copy() const { return {map_.data(), map_.data() + map_.size()}; }
  uint64_t bytes() const { return map_.size(); }

 private:
  const uint32_t page_size_;
  Descriptor file_;
  Mapping map_;
  std::vector<bool> dirty_;
};

// Reserves huge pages beside those that are, and gives them back. Their number
// is the machine's: of several test programs, one at a time has its own.
class HugePages {
 public:
  explicit HugePages(uint64_t count);
  ~HugePages();
  bool reserved() const { return reserved_; }

 private:
  Descriptor turn_;
  uint64_t before_ = 0;
  bool reserved_ = false;
};

// A receiver with its events kept.
class Backup {
 public:
  explicit Backup(const std::string& host = "127.0.0.1");
  static Receiver::Session SessionFor(const std::string& path, uint64_t ram_bytes,
                                      uint32_t page_size = 4096);
  Receiver& operator*() { return *receiver_; }
  Receiver* operator->() { return receiver_.get(); }
  void Close() { receiver_.reset(); }
  size_t Count(ReceiverEvent::Type type);
  // Waits for the n-th event of the type (from 1) and returns it.
  ReceiverEvent Await(ReceiverEvent::Type type, size_t n = 1);
  std::vector<ReceiverEvent> Events();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<ReceiverEvent> events_;
  std::unique_ptr<Receiver> receiver_;
};

// `receive_buffer_bytes`: of accepted connections; 0: default.
Descriptor ListenLoopback(uint16_t* port, int receive_buffer_bytes = 0);
Descriptor AcceptOne(const Descriptor& listener);
// `send_buffer_bytes` likewise.
Descriptor ConnectLoopback(uint16_t port, int send_buffer_bytes = 0);

std::array<std::byte, 32> Token(uint8_t fill);
Bytes ReadFile(const std::string& path);

// Connects to this host, and sends by that strategy.
Result<std::unique_ptr<EpochWriter>> ConnectWriter(uint16_t port, const EpochWriter::Hello& hello,
                                                   Strategy strategy, const CancelSignal& cancel,
                                                   unsigned streams = 1);

// Sends one epoch straight from `ram` and waits for its acknowledgement.
Status SendEpoch(EpochWriter& writer, const GuestRam& ram, const std::vector<PageRun>& runs,
                 uint64_t epoch, const Bytes& device, const Bytes* prefix = nullptr,
                 std::optional<int64_t> stopped_ns = std::nullopt);
Status SendRound(EpochWriter& writer, const GuestRam& ram, const std::vector<PageRun>& runs);

// A Unix listener in the standby's place; takes one connection to its end.
class Standby {
 public:
  explicit Standby(const std::string& path);
  Bytes Received();

 private:
  Descriptor listener_;
  Bytes bytes_;
  std::thread thread_;
};

// Forwards TCP connections to a port of this host; does to one of them what the
// options say.
class Proxy {
 public:
  struct Options {
    uint64_t forward_bytes_max = ~uint64_t{0};  // of what the client sends; then both ends close
    size_t chunk_bytes = 64 << 10;
    int chunk_delay_us = 0;
    int buffer_bytes = 0;                       // SO_RCVBUF towards the client; 0: default
    // Sees and may change each chunk; the offset is that of its first byte.
    std::function<void(uint64_t offset, std::byte* bytes, size_t count)> inspect = {};
    // How much of each chunk is forwarded; where it is not all, both ends close.
    std::function<size_t(uint64_t offset, const std::byte* bytes, size_t count)> pass = {};
    unsigned victim = 0;  // the connection, in the order of connecting, that is treated so
  };
  Proxy(uint16_t target, Options options);
  ~Proxy();
  uint16_t port() const { return port_; }

 private:
  void Accept();
  void Forward(Descriptor client, bool victim);
  const uint16_t target_;
  const Options options_;
  uint16_t port_ = 0;  // before the listener, which sets it
  Descriptor listener_;
  CancelSignal stop_;
  std::vector<std::thread> forwarders_;  // the acceptor's own, until it is joined
  std::thread acceptor_;
};

// A plain blocking connection, for what EpochWriter would never send.
class RawClient {
 public:
  explicit RawClient(uint16_t port);
  void Send(std::span<const std::byte> bytes);  // ignores a peer that is gone
  // Reads to the end of the stream.
  Bytes Drain();
  Bytes Read(size_t bytes);
  int fd() const { return socket_.get(); }

 private:
  Descriptor socket_;
};

}  // namespace holdfast::test
