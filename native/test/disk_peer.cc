#include "test/disk_peer.h"

#include <sys/socket.h>

#include <algorithm>

#include "wire/frame.h"

namespace holdfast::test {
namespace {

std::vector<uint64_t> SizesOf(const std::vector<DiskPeer::Disk>& disks) {
  std::vector<uint64_t> sizes;
  for (const DiskPeer::Disk& disk : disks) sizes.push_back(disk.image.size());
  return sizes;
}

}  // namespace

DiskPeer::DiskPeer(Descriptor socket, Options options)
    : socket_(std::move(socket)),
      options_(std::move(options)),
      decoder_(SizesOf(options_.disks)),
      logs_(options_.disks.size()),
      thread_([this] { Run(); }) {}

DiskPeer::~DiskPeer() { Stop(); }

std::vector<DiskPeer::Disk> DiskPeer::Stop() {
  if (thread_.joinable()) {
    ::shutdown(socket_.get(), SHUT_RDWR);
    thread_.join();
  }
  return options_.disks;
}

std::vector<Bytes> DiskPeer::AwaitBoundary(uint64_t epoch) {
  std::unique_lock lock(mutex_);
  CHECK(changed_.wait_for(lock, std::chrono::milliseconds(kDeadlineMs),
                          [&] { return epoch_ >= epoch; }));
  CHECK_EQ(epoch_, epoch);
  return at_boundary_;
}

bool DiskPeer::Reached(uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  return epoch_ >= epoch;
}

void DiskPeer::AwaitLog(uint64_t bytes) {
  std::unique_lock lock(mutex_);
  CHECK(changed_.wait_for(lock, std::chrono::milliseconds(kDeadlineMs),
                          [&] { return log_bytes_ >= bytes; }));
}

uint64_t DiskPeer::frames() {
  const std::lock_guard lock(mutex_);
  return frames_;
}
uint64_t DiskPeer::base_bytes() {
  const std::lock_guard lock(mutex_);
  return base_bytes_;
}
uint64_t DiskPeer::hole_bytes() {
  const std::lock_guard lock(mutex_);
  return hole_bytes_;
}
uint64_t DiskPeer::records() {
  const std::lock_guard lock(mutex_);
  return records_;
}
std::vector<DiskPlan> DiskPeer::plans() {
  const std::lock_guard lock(mutex_);
  return plans_;
}

void DiskPeer::Speak() {
  const std::lock_guard lock(mutex_);
  options_.silent = false;
  TellReceived();
}

bool DiskPeer::ReadAll(std::span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t got = ::recv(socket_.get(), to.data(), to.size(), 0);
    if (got <= 0) return false;
    to = to.subspan(static_cast<size_t>(got));
  }
  return true;
}

void DiskPeer::Send(FrameType type, std::span<const std::byte> table,
                    std::span<const std::byte> payload) {
  const HeaderBytes head = EncodeHeader({.type = type,
                                         .table_bytes = static_cast<uint32_t>(table.size()),
                                         .payload_bytes = payload.size()});
  for (const auto part : {std::span<const std::byte>(head), table, payload}) {
    if (!part.empty()) ::send(socket_.get(), part.data(), part.size(), MSG_NOSIGNAL);
  }
}

void DiskPeer::Run() {
  HeaderBytes head;
  std::array<std::byte, HelloBody::kBytes> body;
  if (!ReadAll(head) || !ReadAll(body)) return;
  const HelloBody hello = DecodeHello(body);
  CHECK_OK(CheckHello(hello));
  CHECK(hello.of_disks() && hello.link == options_.link);
  Greet();
  while (Serve()) {
  }
  ::shutdown(socket_.get(), SHUT_RDWR);
}

void DiskPeer::Greet() {
  Send(FrameType::kHelloOk, {}, EncodeHelloOk({.flags = 0, .link = options_.link}));
  std::vector<DiskState> states;
  for (const Disk& disk : options_.disks) {
    DiskState& state = states.emplace_back();
    state.id = disk.id;
    state.image_bytes = disk.image.size();
    state.sync_id = disk.sync_id;
    state.trusted = disk.trusted;
    state.fresh = !disk.trusted;
    for (const WireRun& run : disk.marks) state.marked_blocks += run.pages;
  }
  Send(FrameType::kDiskState, {}, EncodeDiskStates(states));
  // A frame for each run: a table may be cut anywhere.
  for (uint32_t i = 0; i < states.size(); i++) {
    for (const WireRun& run : options_.disks[i].marks) {
      RunTableWriter table;
      table.Add(run);
      Send(FrameType::kDiskMarks, table.bytes(), EncodeDiskMarks({i}));
    }
  }
}

bool DiskPeer::Serve() {
  HeaderBytes head;
  if (frames() == options_.frames_max) {
    if (!options_.error.empty()) {
      const std::string frame = EncodeErrorFrame(WireError::kNoSpace, options_.error);
      ::send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL);
      ::shutdown(socket_.get(), SHUT_WR);
      while (ReadAll(std::span(head).first(1))) {
      }
    }
    return false;
  }
  if (!ReadAll(head)) return false;
  auto decoded = decoder_.Header(head);
  CHECK_OK(decoded);
  const FrameHeader header = decoded.value();
  Bytes payload(header.payload_bytes);
  if (!ReadAll(payload)) return false;
  const std::lock_guard lock(mutex_);
  switch (header.type) {
    case FrameType::kDiskSync: {
      auto plans = decoder_.Sync(payload);
      CHECK_OK(plans);
      plans_ = plans.value();
      for (size_t i = 0; i < logs_.size(); i++) logs_[i].lsn = plans_[i].lsn;
      break;
    }
    case FrameType::kDiskBase: OnBase(header, payload); break;
    case FrameType::kDiskLog: OnLog(header, payload); break;
    case FrameType::kDiskSynced: {
      CHECK_OK(decoder_.Synced(payload));
      for (const Log& log : logs_) CHECK(log.pending.empty());
      Send(FrameType::kDiskReady, {}, {});
      break;
    }
    default: CHECK(header.type == FrameType::kDiskBoundary); OnBoundary(header, payload);
  }
  frames_++;
  changed_.notify_all();
  return true;
}

void DiskPeer::OnBase(const FrameHeader& header, std::span<const std::byte> payload) {
  auto base = decoder_.Base(header, payload.first(DiskBaseBody::kBytes));
  CHECK_OK(base);
  const auto& [disk, kind, offset, length] = base.value();
  CHECK(logs_[disk].pending.empty());
  std::byte* at = options_.disks[disk].image.data() + offset;
  if (kind == DiskBaseBody::Kind::kData) {
    std::memcpy(at, payload.data() + DiskBaseBody::kBytes, length);
    base_bytes_ += length;
  } else {
    std::memset(at, 0, length);
    hole_bytes_ += length;
  }
}

void DiskPeer::OnLog(const FrameHeader& header, std::span<const std::byte> payload) {
  auto body = decoder_.Log(header, payload.first(DiskLogBody::kBytes));
  CHECK_OK(body);
  const uint32_t disk = body.value().disk;
  Log& log = logs_[disk];
  log.pending.insert(log.pending.end(), payload.begin() + DiskLogBody::kBytes, payload.end());
  log_bytes_ += payload.size() - DiskLogBody::kBytes;
  std::span<const std::byte> rest(log.pending);
  while (rest.size() >= sizeof(RecordHeader)) {
    Record record{};
    std::memcpy(&record.header, rest.data(), sizeof record.header);
    CHECK_OK(CheckRecordHeader(record.header, log.lsn, options_.disks[disk].image.size()));
    const uint64_t bytes = RecordBytes(record.header.kind, record.header.length);
    if (rest.size() < bytes) break;
    const bool writes = record.header.kind == RecordKind::kWrite;
    const auto data = rest.subspan(sizeof(RecordHeader), writes ? record.header.length : 0);
    CHECK_OK(CheckRecordDigest(record.header, data));
    record.data.assign(data.begin(), data.end());
    log.lsn += bytes;
    record.end = log.lsn;
    records_++;
    if (decoder_.shipping()) {
      log.waiting.push_back(std::move(record));
    } else {
      Apply(disk, record);
    }
    rest = rest.subspan(bytes);
  }
  log.pending.erase(log.pending.begin(), log.pending.end() - static_cast<ptrdiff_t>(rest.size()));
  TellReceived();
}

void DiskPeer::TellReceived() {
  if (options_.silent) return;
  for (uint32_t i = 0; i < logs_.size(); i++) {
    Send(FrameType::kDiskReceived, {}, EncodeDiskLog({i, decoder_.lsn(i)}));
  }
}

void DiskPeer::OnBoundary(const FrameHeader& header, std::span<const std::byte> payload) {
  auto lsns = decoder_.Boundary(header, payload);
  CHECK_OK(lsns);
  at_boundary_.clear();
  for (uint32_t disk = 0; disk < logs_.size(); disk++) {
    auto& waiting = logs_[disk].waiting;
    size_t applied = 0;
    for (; applied < waiting.size() && waiting[applied].end <= lsns.value()[disk]; applied++) {
      Apply(disk, waiting[applied]);
    }
    // It lies between two records.
    if (applied > 0) CHECK_EQ(waiting[applied - 1].end, lsns.value()[disk]);
    waiting.erase(waiting.begin(), waiting.begin() + static_cast<ptrdiff_t>(applied));
    at_boundary_.push_back(options_.disks[disk].image);
  }
  epoch_ = header.epoch;
}

void DiskPeer::Apply(uint32_t disk, const Record& record) {
  std::byte* at = options_.disks[disk].image.data() + record.header.offset;
  if (record.header.kind == RecordKind::kWrite) {
    std::memcpy(at, record.data.data(), record.data.size());
  } else {
    std::memset(at, 0, record.header.length);
  }
}

}  // namespace holdfast::test
