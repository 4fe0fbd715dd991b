#include "disk/shipper.h"

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <utility>

#include "base/clock.h"
#include "base/futex.h"
#include "disk/disk_map.h"
#include "wire/run_table.h"
#include "wire/text.h"

namespace holdfast {
namespace {

static_assert(kMapBlockBytes == kDiskBlockBytes);

// What a record that wakes the thread may wait for others: a system call, and a
// wake-up of this thread by the guest's writes, for each would cost more than all
// else. Not when there is much already, and not when an epoch ends.
constexpr int kGatherMs = 1;
constexpr uint64_t kGatherBytes = 256 << 10;

constexpr int kListenStepMs = 1'000;
// What the peer has to say about a failed send is here by then, or it was lost.
constexpr int kExplainMs = 200;

Error Cancelled() { return Error::Of(ErrorCode::kCancelled, "disk stream: ended"); }

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, std::move(message));
}

}  // namespace

Shipper::Shipper(std::shared_ptr<ShippedDisks> shipped) : shipped_(std::move(shipped)) {}

Result<std::unique_ptr<Shipper>> Shipper::Open(std::span<const Disk> disks) {
  HF_ASSERT(!disks.empty() && disks.size() <= kDisksMax);
  auto shipped = std::make_shared<ShippedDisks>();
  for (const Disk& disk : disks) {
    auto log = LogReader::Open(disk.ring_path, disk.image_bytes);
    if (!log.ok()) return log.error();
    auto& entry = shipped->disks.emplace_back(std::make_unique<ShippedDisks::Disk>());
    entry->id = disk.id;
    entry->log = std::move(log).value();
  }
  std::unique_ptr<Shipper> shipper(new Shipper(std::move(shipped)));
  shipper->local_.assign(disks.begin(), disks.end());
  return shipper;
}

Result<std::unique_ptr<Shipper>> Shipper::Connect(std::span<const Disk> disks,
                                                  const DiskLink::Peer& peer,
                                                  const CancelSignal& cancel,
                                                  std::function<void()> on_end) {
  auto shipper = Open(disks);
  if (!shipper.ok()) return shipper.error();
  auto link = DiskLink::Connect(peer, cancel);
  if (!link.ok()) return link.error();
  HF_TRY(shipper.value()->Meet(std::move(link).value(), peer.timeout_ms));
  shipper.value()->Start(std::move(on_end));
  return shipper;
}

Result<std::unique_ptr<Shipper>> Shipper::Adopt(Descriptor connected, std::span<const Disk> disks,
                                                const DiskLink::Peer& peer,
                                                const CancelSignal& cancel,
                                                std::function<void()> on_end) {
  auto shipper = Open(disks);
  if (!shipper.ok()) return shipper.error();
  auto link = DiskLink::Adopt(std::move(connected), peer, cancel);
  if (!link.ok()) return link.error();
  HF_TRY(shipper.value()->Meet(std::move(link).value(), peer.timeout_ms));
  shipper.value()->Start(std::move(on_end));
  return shipper;
}

Shipper::~Shipper() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (!error_) error_ = Cancelled();
  }
  Command();
  if (link_ != nullptr) link_->Interrupt();
  ship_thread_.Join();
  listen_thread_.Join();
}

void Shipper::Start(std::function<void()> on_end) {
  on_end_ = std::move(on_end);
  const auto run = [this](Status (Shipper::*loop)()) {
    Status ended = (this->*loop)();
    Fail(ended.ok() ? Cancelled() : ended.error());
  };
  ship_thread_ = Thread("hf-ship", [run] { run(&Shipper::ShipLoop); });
  listen_thread_ = Thread("hf-ship-listen", [run] { run(&Shipper::ListenLoop); });
}

// --- meeting the backup; no other thread yet ---

Status Shipper::Meet(std::unique_ptr<DiskLink> link, int timeout_ms) {
  link_ = std::move(link);
  auto frame = link_->Await(timeout_ms);
  if (!frame.ok()) return frame.error();
  if (frame.value().header.type != FrameType::kDiskState) {
    return Refused(
        Text("%s frame instead of DISK_STATE", FrameName(frame.value().header.type)));
  }
  auto states = DecodeDiskStates(frame.value().payload);
  if (!states.ok()) return states.error();
  HF_TRY(Match(std::move(states).value()));
  return TakeMarks(timeout_ms);
}

// From here on the disks are in the backup's order.
Status Shipper::Match(std::vector<DiskState> states) {
  if (states.size() != local_.size()) {
    return Refused(Text("DISK_STATE frame: %zu disks, but the VM has %zu", states.size(),
                        local_.size()));
  }
  for (size_t i = 0; i < states.size(); i++) {
    DiskState& state = states[i];
    const auto found = std::find_if(local_.begin() + static_cast<ptrdiff_t>(i), local_.end(),
                                    [&](const Disk& disk) { return disk.id == state.id; });
    if (found == local_.end()) {
      return Refused(Text("DISK_STATE frame: disk %s, which the VM lacks", state.id.c_str()));
    }
    const auto at = static_cast<size_t>(found - local_.begin());
    std::swap(local_[i], local_[at]);
    std::swap(shipped_->disks[i], shipped_->disks[at]);
    const Disk& disk = local_[i];
    if (state.image_bytes != disk.image_bytes) {
      return Refused(Text("DISK_STATE frame: %" PRIu64 " bytes of disk %s, not %" PRIu64,
                          state.image_bytes, state.id.c_str(), disk.image_bytes));
    }
    auto map = DiskMap::Open(disk.map_path, disk.image_bytes, DiskMap::Mode::kRead);
    if (!map.ok()) return map.error();
    Difference& difference = differences_.emplace_back();
    difference.peer = std::move(state);
    difference.local_sync_id = map.value().sync_id();
    difference.local_trusted = map.value().trusted();
    difference.local_marked_bytes =
        std::min(map.value().MarkedBlocks() * kDiskBlockBytes, disk.image_bytes);
  }
  return {};
}

Status Shipper::TakeMarks(int timeout_ms) {
  peer_marks_.resize(disks());
  std::vector<uint64_t> left;
  for (const Difference& difference : differences_) left.push_back(difference.peer.marked_blocks);
  while (std::any_of(left.begin(), left.end(), [](uint64_t blocks) { return blocks > 0; })) {
    auto frame = link_->Await(timeout_ms);
    if (!frame.ok()) return frame.error();
    const FrameHeader& header = frame.value().header;
    if (header.type != FrameType::kDiskMarks) {
      return Refused(Text("%s frame instead of DISK_MARKS", FrameName(header.type)));
    }
    auto marks =
        DecodeDiskMarks(std::span(frame.value().payload).first<DiskMarksBody::kBytes>());
    if (!marks.ok()) return marks.error();
    const uint32_t disk = marks.value().disk;
    if (disk >= disks()) return Refused(Text("DISK_MARKS frame: disk %" PRIu32, disk));
    const uint64_t image_bytes = local_[disk].image_bytes;
    auto blocks = CheckRuns(frame.value().table, DiskBlocks(image_bytes));
    if (!blocks.ok()) return Refused("DISK_MARKS frame: " + blocks.error().message);
    if (blocks.value() > left[disk]) {
      return Refused(Text("DISK_MARKS frame: %" PRIu64 " blocks, but %" PRIu64 " are left",
                          blocks.value(), left[disk]));
    }
    left[disk] -= blocks.value();
    if (!peer_marks_[disk]) peer_marks_[disk].emplace(image_bytes);
    WireRun run;
    for (RunCursor runs(frame.value().table); runs.Next(run);) {
      peer_marks_[disk]->Add(run.first_page, run.pages);
    }
  }
  return {};
}

// --- the calls ---

void Shipper::Command() {
  commands_.fetch_add(1);
  FutexWakeAll(commands_);
}

std::optional<Error> Shipper::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

// Both maps, read after every server began to log: what was written before is
// marked, what is written after is in the log.
Result<BlockSet> Shipper::ChangedBlocks(size_t disk) const {
  auto map = DiskMap::Open(local_[disk].map_path, local_[disk].image_bytes, DiskMap::Mode::kRead);
  if (!map.ok()) return map.error();
  const Difference& difference = differences_[disk];
  // TypeScript has decided by the same facts; a wrong answer would be silent.
  const bool known = map.value().trusted() && difference.peer.trusted &&
                     map.value().sync_id() != SyncId{} &&
                     map.value().sync_id() == difference.peer.sync_id;
  if (!known) {
    return Refused(Text("disk %s: what has changed is not known, all of it must be sent",
                        local_[disk].id.c_str()));
  }
  BlockSet changed = peer_marks_[disk] ? *peer_marks_[disk] : BlockSet(local_[disk].image_bytes);
  map.value().ForEachMarkedRun([&changed](uint64_t offset, uint64_t length) {
    const uint64_t first = offset / kDiskBlockBytes;
    changed.Add(first, DiskBlocks(offset + length) - first);
  });
  return changed;
}

Result<Shipper::SyncRequest> Shipper::Prepare(std::span<const Plan> plans) {
  SyncRequest request;
  if (plans.size() != disks()) {
    return Refused(Text("%zu plans for %zu disks", plans.size(), disks()));
  }
  for (size_t i = 0; i < disks(); i++) {
    const Disk& disk = local_[i];
    const auto plan = std::find_if(plans.begin(), plans.end(),
                                   [&](const Plan& candidate) { return candidate.id == disk.id; });
    if (plan == plans.end()) return Refused("no plan for disk " + disk.id);
    HF_TRY(shipped_->disks[i]->log->Begin());
    std::optional<BlockSet> changed;
    if (plan->what == DiskPlan::What::kChanged) {
      auto blocks = ChangedBlocks(i);
      if (!blocks.ok()) return blocks.error();
      changed = std::move(blocks).value();
    }
    auto copy = BaseCopy::Open(disk.image_path, disk.image_bytes, std::move(changed));
    if (!copy.ok()) return copy.error();
    request.copies.push_back(std::move(copy).value());
    request.plans.push_back({plan->what, log(i).start()});
  }
  return request;
}

Result<Shipper::Synced> Shipper::Sync(std::span<const Plan> plans, const SyncId& sync_id) {
  const double started_ms = MonotonicMs();
  if (sync_id == SyncId{}) return Refused("a sync id is not all zero");
  auto request = Prepare(plans);
  if (!request.ok()) return request.error();
  request.value().sync_id = sync_id;
  std::unique_lock lock(mutex_);
  if (ready_ || synced_sent_ || shipped_->copying.exchange(true)) {
    return Error::Of(ErrorCode::kLimit, "the disks are synchronised once in a connection");
  }
  sync_request_ = std::move(request).value();
  Command();
  changed_.wait(lock, [this] { return ready_ || error_; });
  shipped_->copying = false;
  if (error_) return *error_;
  return Synced{base_bytes_, hole_bytes_, MonotonicMs() - started_ms};
}

Result<std::vector<uint64_t>> Shipper::Heads() {
  std::vector<uint64_t> heads;
  for (size_t i = 0; i < disks(); i++) {
    HF_TRY(log(i).CheckLogging());
    auto head = log(i).Head();
    if (!head.ok()) return head.error();
    heads.push_back(head.value());
  }
  Command();
  return heads;
}

void Shipper::MarkBoundary(uint64_t epoch, std::vector<uint64_t> lsns) {
  HF_ASSERT(ready_ && lsns.size() == disks());
  {
    const std::lock_guard lock(mutex_);
    HF_ASSERT(!boundary_request_);
    boundary_request_ = {epoch, std::move(lsns)};
  }
  Command();
}

bool Shipper::Received(std::span<const uint64_t> lsns) const {
  for (size_t i = 0; i < disks(); i++) {
    if (log(i).received() < lsns[i]) return false;
  }
  return true;
}

// --- the ship thread ---

Status Shipper::ShipLoop() {
  for (;;) {
    const uint32_t seen = commands_.load();
    HF_TRY(TakeCommands());
    if (!shipping_) {
      FutexWait(commands_, seen, -1);
      continue;
    }
    auto shipped = ShipRound();
    if (!shipped.ok()) return shipped.error();
    HF_TRY(SendDueBoundary());
    if (sync_) {
      HF_TRY(CopySome());
    } else if (!shipped.value()) {
      HF_TRY(Sleep(seen));
    }
  }
}

Status Shipper::TakeCommands() {
  std::optional<SyncRequest> begun;
  {
    const std::lock_guard lock(mutex_);
    if (error_) return *error_;
    if (boundary_request_) boundary_ = std::exchange(boundary_request_, std::nullopt);
    begun = std::exchange(sync_request_, std::nullopt);
  }
  if (!begun) return {};
  sync_ = std::move(begun);
  shipping_ = true;
  return link_->Send(FrameType::kDiskSync, 0, EncodeDiskPlans(sync_->plans));
}

Status Shipper::ShipPart(size_t disk, uint64_t end) {
  ShippedDisks::Disk& entry = *shipped_->disks[disk];
  const LogReader::Part part = entry.log->Take(end, kDiskPieceBytesMax);
  auto copied = link_->SendLog(static_cast<uint32_t>(disk), *entry.log, part);
  if (!copied.ok()) return copied.error();
  entry.copied_bytes.fetch_add(copied.value(), std::memory_order_relaxed);
  return {};
}

Status Shipper::ShipTo(size_t disk, uint64_t end) {
  while (log(disk).sent() < end) HF_TRY(ShipPart(disk, end));
  return {};
}

// A piece of each log; false: there was nothing.
Result<bool> Shipper::ShipRound() {
  bool shipped = false;
  for (size_t i = 0; i < disks(); i++) {
    auto head = log(i).Head();
    if (!head.ok()) return head.error();
    if (log(i).sent() == head.value()) continue;
    HF_TRY(ShipPart(i, head.value()));
    shipped = true;
  }
  return shipped;
}

Status Shipper::SendDueBoundary() {
  if (!boundary_) return {};
  for (size_t i = 0; i < disks(); i++) {
    if (log(i).sent() < boundary_->lsns[i]) return {};
  }
  const Boundary boundary = *std::exchange(boundary_, std::nullopt);
  return link_->Send(FrameType::kDiskBoundary, boundary.epoch, EncodeDiskBoundary(boundary.lsns));
}

// What is published by now leaves first: then the piece that is read has it, and
// lies between two records in the stream (docs/disk.md, "The base copy").
Status Shipper::CopySome() {
  if (copying_ == disks()) return FinishCopy();
  auto head = log(copying_).Head();
  if (!head.ok()) return head.error();
  HF_TRY(ShipTo(copying_, head.value()));
  auto pieces = sync_->copies[copying_].Next();
  if (!pieces.ok()) return pieces.error();
  if (pieces.value().empty()) {
    copying_++;
    return {};
  }
  HF_TRY(link_->SendBase(static_cast<uint32_t>(copying_), pieces.value()));
  for (const BaseCopy::Piece& piece : pieces.value()) {
    (piece.data.empty() ? hole_bytes_ : base_bytes_) += piece.length;
  }
  ShowProgress();
  return {};
}

void Shipper::ShowProgress() {
  uint64_t done = 0;
  uint64_t total = 0;
  for (const BaseCopy& copy : sync_->copies) {
    done += copy.done_bytes();
    total += copy.total_bytes();
  }
  shipped_->total_bytes = total;
  shipped_->done_bytes = done;
}

// All logs end between two records then, for nobody else sends them.
Status Shipper::FinishCopy() {
  for (size_t i = 0; i < disks(); i++) {
    auto head = log(i).Head();
    if (!head.ok()) return head.error();
    HF_TRY(ShipTo(i, head.value()));
  }
  const SyncId sync_id = std::exchange(sync_, std::nullopt)->sync_id;
  synced_sent_ = true;
  return link_->Send(FrameType::kDiskSynced, 0, sync_id);
}

Status Shipper::Sleep(uint32_t commands_seen) {
  waiter_.Clear();
  waiter_.Add(commands_, commands_seen);
  bool empty = true;
  for (size_t i = 0; i < disks(); i++) {
    RingHeader& header = log(i).ring().header();
    // Said before it is looked (ring.cc): who publishes after the look will wake.
    header.head_waits.store(1);
    waiter_.Add(header.head_wakes, header.head_wakes.load());
    if (header.head.load() != log(i).sent()) empty = false;
  }
  Status waited;
  if (empty) waited = waiter_.Wait();
  uint64_t backlog = 0;
  for (size_t i = 0; i < disks(); i++) {
    RingHeader& header = log(i).ring().header();
    header.head_waits.store(0);
    backlog += header.head.load() - log(i).sent();
  }
  HF_TRY(std::move(waited));
  if (backlog > 0 && backlog < kGatherBytes) FutexWait(commands_, commands_seen, kGatherMs);
  return {};
}

// --- the listening thread ---

bool Shipper::AnswerDue() const {
  if (synced_sent_ && !ready_) return true;
  for (size_t i = 0; i < disks(); i++) {
    if (log(i).received() < log(i).sent()) return true;
  }
  return false;
}

Status Shipper::ListenLoop() {
  double quiet_since_ms = MonotonicMs();
  for (;;) {
    auto frames = link_->Listen(kListenStepMs);
    if (!frames.ok()) return frames.error();
    const double now_ms = MonotonicMs();
    if (!frames.value().empty() || !AnswerDue()) quiet_since_ms = now_ms;
    if (now_ms - quiet_since_ms > kPeerSilenceMsMax) {
      return Error{ErrorCode::kPeerLost, ETIMEDOUT, "poll",
                   Text("disk stream: peer silent for %d ms", kPeerSilenceMsMax)};
    }
    for (const DiskLink::Frame& frame : frames.value()) HF_TRY(OnFrame(frame));
  }
}

Status Shipper::OnFrame(const DiskLink::Frame& frame) {
  if (frame.header.type == FrameType::kDiskReady) {
    const std::lock_guard lock(mutex_);
    if (!synced_sent_ || ready_) return Refused("DISK_READY frame: out of order");
    ready_ = true;
    changed_.notify_all();
    return {};
  }
  auto received = DecodeDiskLog(std::span(frame.payload).first<DiskLogBody::kBytes>());
  if (!received.ok()) return received.error();
  const auto [disk, lsn] = received.value();
  if (disk >= disks()) return Refused(Text("DISK_RECEIVED frame: disk %" PRIu32, disk));
  return shipped_->disks[disk]->log->Received(lsn);
}

// --- the end ---

// The first counts, but a send that failed is explained by what the peer says, if
// it does: the listener hears it.
void Shipper::Fail(Error error) {
  {
    std::unique_lock lock(mutex_);
    const bool listening = std::string_view(error.syscall).starts_with("send");
    if (error.code == ErrorCode::kPeerLost && listening) {
      changed_.wait_for(lock, std::chrono::milliseconds(kExplainMs),
                        [this] { return error_.has_value(); });
    }
    if (error_) return;
    error_ = std::move(error);
    changed_.notify_all();
  }
  Command();
  link_->Interrupt();
  if (on_end_) on_end_();
}

}  // namespace holdfast
