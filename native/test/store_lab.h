// A backup with disks, and a primary of which every frame is scripted.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "disk/disk_link.h"
#include "disk/record.h"
#include "disk/store.h"
#include "test/lab.h"

namespace holdfast::test {

inline SyncId IdOf(uint8_t fill) {
  SyncId id;
  id.fill(static_cast<std::byte>(fill));
  return id;
}

// A store whose events are kept; its files are in the directory.
class Store {
 public:
  explicit Store(std::vector<DiskStore::Disk> disks)
      : store_(DiskStore::Create(std::move(disks), [this](const DiskStore::Event& event) {
          const std::lock_guard lock(mutex_);
          events_.push_back(event);
          changed_.notify_all();
        })) {}
  ~Store() { store_.reset(); }

  // Of one disk; makes its directory.
  static DiskStore::Disk Describe(const TempDir& dir, const std::string& id, uint64_t bytes,
                                  uint64_t journal_bytes = kJournalBytesMin) {
    const std::string meta = dir / (id + ".meta");
    ::mkdir(meta.c_str(), 0700);
    return {.id = id,
            .image_path = dir / (id + ".img"),
            .meta_dir = meta,
            .image_bytes = bytes,
            .journal_bytes = journal_bytes};
  }

  DiskStore* operator->() { return store_.get(); }
  const std::shared_ptr<DiskStore>& shared() { return store_; }

  std::vector<DiskStore::Opened> MustOpen() {
    auto opened = store_->Open();
    CHECK_OK(opened);
    return opened.value();
  }
  // Waits for an event of that type, of that epoch or a later one.
  DiskStore::Event Await(DiskStore::Event::Type type, uint64_t epoch = 0) {
    std::unique_lock lock(mutex_);
    std::optional<DiskStore::Event> found;
    const bool came = changed_.wait_for(lock, std::chrono::milliseconds(kDeadlineMs), [&] {
      for (const auto& event : events_) {
        if (event.type == type && event.epoch >= epoch) found = event;
      }
      return found.has_value();
    });
    CHECK(came);
    return *found;
  }
  size_t Count(DiskStore::Event::Type type) {
    const std::lock_guard lock(mutex_);
    return static_cast<size_t>(std::count_if(
        events_.begin(), events_.end(), [type](const auto& event) { return event.type == type; }));
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<DiskStore::Event> events_;
  std::shared_ptr<DiskStore> store_;  // last: its threads use the rest
};

constexpr uint64_t kTestRamBytes = 16 * 4096;

// Shows that token, on both connections.
class ScriptedPrimary {
 public:
  ScriptedPrimary(uint16_t port, uint8_t token, const std::vector<uint64_t>& disk_bytes,
                  bool with_disks = true)
      : ram_(kTestRamBytes / 4096, 4096) {
    for (const uint64_t bytes : disk_bytes) disks_.push_back({Bytes(bytes), {}, 0, 0});
    EpochWriter::Hello hello{Token(token), 4096, kTestRamBytes};
    auto writer = ConnectWriter(port, hello, Strategy::kCopy, cancel_);
    CHECK_OK(writer);
    writer_ = std::move(writer).value();
    if (with_disks) ConnectDisks(port, token);
  }

  void ConnectDisks(uint16_t port, uint8_t token) {
    DiskLink::Peer peer{.host = "127.0.0.1",
                        .port = port,
                        .token = Token(token),
                        .page_size = 4096,
                        .ram_bytes = kTestRamBytes,
                        .link = writer_->link(),
                        .streams = 1,
                        .timeout_ms = kDeadlineMs};
    auto link = DiskLink::Connect(peer, cancel_);
    CHECK_OK(link);
    link_ = std::move(link).value();
    auto state = link_->Await(kDeadlineMs);
    CHECK_OK(state);
    CHECK(state.value().header.type == FrameType::kDiskState);
    auto states = DecodeDiskStates(state.value().payload);
    CHECK_OK(states);
    states_ = states.value();
    for (DiskState& disk : states_) {
      uint64_t left = disk.marked_blocks;
      marks_.emplace_back();
      while (left > 0) {
        auto frame = link_->Await(kDeadlineMs);
        CHECK_OK(frame);
        RunCursor runs(frame.value().table);
        for (WireRun run; runs.Next(run);) {
          marks_.back().push_back(run);
          left -= run.pages;
        }
      }
    }
  }

  const std::vector<DiskState>& states() const { return states_; }
  uint64_t MarkedBlocks(size_t disk) const {
    uint64_t blocks = 0;
    for (const WireRun& run : marks_[disk]) blocks += run.pages;
    return blocks;
  }
  Bytes& image(size_t disk) { return disks_[disk].image; }
  std::vector<Bytes> images() const {
    std::vector<Bytes> all;
    for (const Disk& disk : disks_) all.push_back(disk.image);
    return all;
  }
  EpochWriter& writer() { return *writer_; }
  DiskLink& link() { return *link_; }
  GuestRam& ram() { return ram_; }
  uint64_t lsn(size_t disk) const { return disks_[disk].lsn; }

  // --- what a guest does ---

  void Write(size_t disk, uint64_t offset, const Bytes& data) {
    std::copy(data.begin(), data.end(), disks_[disk].image.begin() + static_cast<ptrdiff_t>(offset));
    Log(disk, RecordKind::kWrite, offset, data.size(), data);
  }
  void Clear(size_t disk, RecordKind kind, uint64_t offset, uint64_t length) {
    std::fill_n(disks_[disk].image.begin() + static_cast<ptrdiff_t>(offset), length, std::byte{0});
    Log(disk, kind, offset, length, {});
  }
  void Scribble(Random& random, size_t writes, size_t bytes_max = 60'000) {
    for (size_t i = 0; i < writes; i++) {
      const size_t disk = random() % disks_.size();
      const uint64_t offset = random() % (disks_[disk].image.size() / 512) * 512;
      const uint64_t length = std::min<uint64_t>(disks_[disk].image.size() - offset,
                                                 512 + random() % bytes_max / 512 * 512);
      switch (random() % 6) {
        case 0: Clear(disk, RecordKind::kTrim, offset, length); break;
        case 1: Clear(disk, RecordKind::kZero, offset, length); break;
        default: Write(disk, offset, RandomBytes(random, length));
      }
    }
  }

  // --- what its daemon does ---

  Status StartSync(DiskPlan::What what = DiskPlan::What::kAll, uint64_t first_lsn = 4096) {
    std::vector<DiskPlan> plans;
    for (Disk& disk : disks_) {
      disk.lsn = disk.sent_lsn = first_lsn;
      disk.log.clear();
      plans.push_back({what, disk.lsn});
    }
    return link_->Send(FrameType::kDiskSync, 0, EncodeDiskPlans(plans));
  }
  // The whole image, holes where it is zero.
  Status SendBase(size_t disk) {
    const Bytes& image = disks_[disk].image;
    for (uint64_t at = 0; at < image.size(); at += kDiskBlockBytes) {
      const uint64_t bytes = std::min<uint64_t>(kDiskBlockBytes, image.size() - at);
      HF_TRY(SendBase(disk, at, bytes));
    }
    return {};
  }
  Status SendBase(size_t disk, uint64_t at, uint64_t bytes) {
    const auto data = std::span(disks_[disk].image).subspan(at, bytes);
    const bool hole = std::all_of(data.begin(), data.end(), [](std::byte b) { return b == std::byte{0}; });
    const auto head = EncodeDiskBase({static_cast<uint32_t>(disk),
                                      hole ? DiskBaseBody::Kind::kHole : DiskBaseBody::Kind::kData,
                                      at, bytes});
    Bytes payload(head.begin(), head.end());
    if (!hole) payload.insert(payload.end(), data.begin(), data.end());
    return link_->Send(FrameType::kDiskBase, 0, payload);
  }
  // So much of the log, in frames of at most a piece.
  Status SendLog(size_t index, uint64_t bytes = ~uint64_t{0}, uint64_t piece = 300'000) {
    Disk& disk = disks_[index];
    bytes = std::min<uint64_t>(bytes, disk.log.size());
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t step = std::min(piece, bytes - done);
      const auto head = EncodeDiskLog({static_cast<uint32_t>(index), disk.sent_lsn});
      Bytes payload(head.begin(), head.end());
      const auto from = disk.log.begin() + static_cast<ptrdiff_t>(done);
      payload.insert(payload.end(), from, from + static_cast<ptrdiff_t>(step));
      HF_TRY(link_->Send(FrameType::kDiskLog, 0, payload));
      disk.sent_lsn += step;
      done += step;
    }
    disk.log.erase(disk.log.begin(), disk.log.begin() + static_cast<ptrdiff_t>(bytes));
    return {};
  }
  Status SendLogs() {
    for (size_t i = 0; i < disks_.size(); i++) HF_TRY(SendLog(i));
    return {};
  }
  Status FinishSync(const SyncId& id) {
    HF_TRY(link_->Send(FrameType::kDiskSynced, 0, id));
    for (;;) {
      auto frame = link_->Await(kDeadlineMs);
      if (!frame.ok()) return frame.error();
      if (frame.value().header.type == FrameType::kDiskReady) return {};
      CHECK(frame.value().header.type == FrameType::kDiskReceived);
    }
  }
  // All of it, and the base of RAM.
  Status SyncAll(const SyncId& id, DiskPlan::What what = DiskPlan::What::kAll) {
    HF_TRY(StartSync(what));
    for (size_t i = 0; i < disks_.size(); i++) HF_TRY(SendBase(i));
    HF_TRY(SendLogs());
    return FinishSync(id);
  }
  std::vector<uint64_t> Lsns() const {
    std::vector<uint64_t> lsns;
    for (const Disk& disk : disks_) lsns.push_back(disk.lsn);
    return lsns;
  }
  Status SendBoundary(uint64_t epoch, const std::vector<uint64_t>& lsns) {
    return link_->Send(FrameType::kDiskBoundary, epoch, EncodeDiskBoundary(lsns));
  }
  // The pages, up to COMMIT.
  Status SendPages(uint64_t epoch) {
    HF_TRY(writer_->BeginEpoch(epoch));
    HF_TRY(writer_->Pages(ram_.source(), ram_.TakeDirty(), true));
    const Bytes device(100, std::byte{1});
    HF_TRY(writer_->Device(device));
    return writer_->Commit();
  }
  Status AwaitAck(uint64_t epoch) {
    auto ack = writer_->AwaitAck(epoch);
    if (!ack.ok()) return ack.error();
    return {};
  }
  // Its log, its boundary, its pages; acknowledged.
  Status SendEpoch(uint64_t epoch) {
    HF_TRY(SendLogs());
    HF_TRY(SendBoundary(epoch, Lsns()));
    HF_TRY(SendPages(epoch));
    return AwaitAck(epoch);
  }
  // What the disk stream ends with.
  Error AwaitDiskError() {
    for (;;) {
      auto frame = link_->Await(kDeadlineMs);
      if (!frame.ok()) return frame.error();
      CHECK(frame.value().header.type == FrameType::kDiskReceived);
    }
  }

 private:
  struct Disk {
    Bytes image;
    Bytes log;  // not yet sent
    uint64_t lsn = 0;
    uint64_t sent_lsn = 0;
  };

  void Log(size_t index, RecordKind kind, uint64_t offset, uint64_t length,
           std::span<const std::byte> data) {
    Disk& disk = disks_[index];
    const RecordHeader header = MakeRecord(kind, disk.lsn, offset, length, data);
    const auto* head = reinterpret_cast<const std::byte*>(&header);
    const uint64_t bytes = RecordBytes(kind, length);
    const size_t end = disk.log.size() + bytes;
    disk.log.insert(disk.log.end(), head, head + sizeof header);
    disk.log.insert(disk.log.end(), data.begin(), data.end());
    disk.log.resize(end);
    disk.lsn += bytes;
  }

  CancelSignal cancel_;
  GuestRam ram_;
  std::vector<Disk> disks_;
  std::vector<DiskState> states_;
  std::vector<std::vector<WireRun>> marks_;
  std::unique_ptr<EpochWriter> writer_;
  std::unique_ptr<DiskLink> link_;
};

// A receiver with a session for these disks, and their token.
struct Generation {
  Generation(const TempDir& dir, Store& store, uint8_t token) : ram_path(dir / ("ram" + std::to_string(token))) {
    Receiver::Session session = Backup::SessionFor(ram_path, kTestRamBytes);
    session.token = Token(token);
    session.disks = store.shared();
    CHECK_OK(backup->OpenSession(session));
  }
  uint16_t port() { return backup->port(); }

  std::string ram_path;
  Backup backup;
};

}  // namespace holdfast::test
