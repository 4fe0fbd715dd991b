// Disks of a VM for the tests of shipping: each with its own disk server, and
// guests' threads that write to them until they are stopped.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "disk/shipper.h"
#include "nbdkit/disk_server.h"
#include "test/disk_peer.h"
#include "test/lab.h"

namespace holdfast::test {

constexpr uint64_t kTestRingBytes = kRingBytesMin;

class TestDisk {
 public:
  TestDisk(const TempDir& dir, std::string id, const Bytes& content) : id_(std::move(id)) {
    image_path_ = dir / (id_ + ".img");
    meta_path_ = dir / (id_ + ".meta");
    ring_path_ = dir / (id_ + ".ring");
    CHECK(::mkdir(meta_path_.c_str(), 0700) == 0);
    const Descriptor image(::open(image_path_.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    CHECK(::ftruncate(image.get(), static_cast<off_t>(content.size())) == 0);
    // What is zero stays a hole.
    for (size_t at = 0; at < content.size(); at += 4096) {
      const size_t bytes = std::min<size_t>(4096, content.size() - at);
      if (std::all_of(&content[at], &content[at] + bytes, [](std::byte b) { return b == std::byte{0}; })) {
        continue;
      }
      CHECK(::pwrite(image.get(), &content[at], bytes, static_cast<off_t>(at)) ==
            static_cast<ssize_t>(bytes));
    }
    Serve();
  }
  ~TestDisk() {
    CHECK_OK(server_->Close());
  }

  // Ends the server without a word, and starts another.
  void Restart() { Serve(); }

  DiskServer& operator*() { return *server_; }
  DiskServer* operator->() { return server_.get(); }
  Bytes Content() const { return ReadFile(image_path_); }
  uint64_t bytes() const { return server_->image().bytes(); }
  const std::string& ring_path() const { return ring_path_; }
  Shipper::Disk described() const {
    return {id_, ring_path_, meta_path_ + "/map", image_path_, server_->image().bytes()};
  }

 private:
  void Serve() {
    server_.reset();
    auto server = DiskServer::Open({image_path_, meta_path_, ring_path_, kTestRingBytes, true});
    CHECK_OK(server);
    server_ = std::move(server).value();
    server_->Begin();
  }

  std::string id_, image_path_, meta_path_, ring_path_;
  std::unique_ptr<DiskServer> server_;
};

// A guest that writes at random to a disk; stopped, it has no write under way.
class Guest {
 public:
  Guest(TestDisk& disk, uint64_t seed, size_t write_bytes_max = 100'000)
      : disk_(disk), random_(seed), write_bytes_max_(write_bytes_max), thread_([this] { Run(); }) {}
  ~Guest() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
      changed_.notify_all();
    }
    disk_->StopLog();  // or it may wait for room that nobody makes
    thread_.join();
  }
  void Stop() {
    std::unique_lock lock(mutex_);
    stopped_ = true;
    changed_.wait(lock, [this] { return !writing_; });
  }
  void Continue() {
    const std::lock_guard lock(mutex_);
    stopped_ = false;
    changed_.notify_all();
  }
  uint64_t writes() const { return writes_; }

 private:
  void Run() {
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        writing_ = false;
        changed_.notify_all();
        changed_.wait(lock, [this] { return !stopped_ || over_; });
        if (over_) return;
        writing_ = true;
      }
      Write();
      writes_++;
    }
  }
  void Write() {
    const uint64_t bytes = disk_.bytes();
    const uint64_t offset = random_() % bytes / 512 * 512;
    const uint64_t length = std::min(bytes - offset, 512 + random_() % write_bytes_max_ / 512 * 512);
    switch (random_() % 8) {
      case 0: CHECK(disk_->Zero(offset, length, false, false, false) == 0); break;
      case 1: CHECK(disk_->Trim(offset, length, false) == 0); break;
      default: {
        const Bytes data = RandomBytes(random_, length);
        CHECK(disk_->Write(data, offset, false) == 0);
      }
    }
  }

  TestDisk& disk_;
  Random random_;
  const size_t write_bytes_max_;
  std::atomic<uint64_t> writes_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  bool over_ = false;
  bool writing_ = false;
  std::thread thread_;  // last: uses all of the above
};

// A shipper and its peer, over a socket of this host.
struct Shipping {
  Shipping(std::vector<TestDisk*> from, DiskPeer::Options options) {
    uint16_t port = 0;
    const Descriptor listener = ListenLoopback(&port);
    Descriptor client = ConnectLoopback(port);
    peer = std::make_unique<DiskPeer>(AcceptOne(listener), std::move(options));
    std::vector<Shipper::Disk> disks;
    for (const TestDisk* disk : from) disks.push_back(disk->described());
    DiskLink::Peer where;
    where.link = 1;
    where.timeout_ms = kDeadlineMs;
    connected = Shipper::Adopt(std::move(client), disks, where, cancel, [this] { ends++; });
  }
  Shipper* operator->() { return connected.value().get(); }

  CancelSignal cancel;
  std::atomic<int> ends{0};
  std::unique_ptr<DiskPeer> peer;
  Result<std::unique_ptr<Shipper>> connected = Error{};
};

inline SyncId TestSyncId(uint8_t fill) {
  SyncId id;
  id.fill(static_cast<std::byte>(fill));
  return id;
}

}  // namespace holdfast::test
